"""Panels of one style, and their places."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import heatmap, stat, statetimeline, table, timeseries, xychart
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import xychart as xychart_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.dashboards.queries import Query
from tools.dashboards.variables import SOURCE, TAG, links

WIDTH = 24
"""Columns of Grafana's grid."""
SCRAPE = "30s"
"""Smallest step of panels with a rate: `$__rate_interval` is then at least four of the usual scrape intervals."""

Panel = Any
"""A builder of the SDK; its classes of panels share methods but no base class."""

GREEN, YELLOW, RED, BLUE, TEXT = "green", "orange", "red", "blue", "text"


@dataclass(frozen=True)
class Steps:
    """Thresholds: colours from these values on; `base` below the first."""

    base: str
    values: Sequence[tuple[float, str]] = ()

    def build(self) -> build.ThresholdsConfig:
        steps = [dashboard.Threshold(value=None, color=self.base)]
        steps += [dashboard.Threshold(value=value, color=colour) for value, colour in self.values]
        return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


@dataclass
class Row:
    """A heading with lines of panels below it; each line has one height."""

    title: str
    lines: list[tuple[int, list[tuple[int, Panel]]]] = field(default_factory=list)

    def line(self, height: int, *panels: tuple[int, Panel]) -> "Row":
        """panels: with their widths, which fill the grid."""
        assert sum(width for width, _ in panels) == WIDTH, self.title
        self.lines.append((height, list(panels)))
        return self


def lines(
    title: str, description: str, queries: Sequence[Query], unit: str = units.Short, axis: str = "", **options: Any
) -> Panel:
    """Lines over time. options: low, high (of the axis), steps (thresholds), none (the text without data), stacked."""
    legend = common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    made = (
        _common(timeseries.Panel(), title, description, queries, options.get("none", ""))
        .unit(unit)
        .legend(legend.display_mode(common.LegendDisplayMode.LIST).calcs(options.get("calcs", [])))
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(False)
        .line_width(2)
    )
    if axis:
        made = made.axis_label(axis)
    if "low" in options:
        made = made.min(options["low"])
    if "high" in options:
        made = made.max(options["high"])
    if steps := options.get("steps"):
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        made = made.thresholds(steps.build()).thresholds_style(style)
    if options.get("stacked"):
        made = made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL)).fill_opacity(40)
    return made


def faint(panel: Panel, *letters: str, dashed: bool = False) -> Panel:
    """Draws the series of these queries thinly, without a legend of their own: they belong to the strong ones.

    Colours go by the name then, so that both have the same.
    """
    panel = panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    for letter in letters:
        hidden = {"legend": True, "tooltip": False, "viz": False}
        properties = {"custom.lineWidth": 1, "custom.hideFrom": hidden}
        if dashed:
            properties["custom.lineStyle"] = {"fill": "dash", "dash": [4, 6]}
        made = [dashboard.DynamicConfigValue(id_val=name, value=value) for name, value in properties.items()]
        panel = panel.override_by_query(letter, made)
    return panel


def value(
    title: str, description: str, queries: Sequence[Query], unit: str, steps: Steps | None = None, **options: Any
) -> Panel:
    """The last value of each series in large figures, with its course behind it."""
    reduced = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    made = (
        _common(stat.Panel(), title, description, queries, options.get("none", ""))
        .unit(unit)
        .reduce_options(reduced)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .text_mode(options.get("text", common.BigValueTextMode.AUTO))
        .thresholds((steps or Steps(TEXT)).build())
    )
    if "decimals" in options:
        made = made.decimals(options["decimals"])
    if mappings := options.get("mappings"):
        made = made.mappings([_mapped(mappings)])
    return made


def cells(title: str, description: str, queries: Sequence[Query], unit: str, axis: str, buckets: bool = False) -> Panel:
    """A heat map with one row for each series, from 0 on: the darker, the larger.

    buckets: the series are the buckets of a histogram, each of which contains those below it.
    """
    colour = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("YlGnBu")
    return (
        _common(heatmap.Panel(), title, description, queries, "", buckets)
        .calculate(False)
        .color(colour.steps(64).min(0))
        .cell_gap(1)
        .cell_values(heatmap.CellValues().unit(unit))
        .filter_values(heatmap.FilterValueRange().le(-1))  # Grafana's own limit, 1e-9, would hide cells with 0
        .y_axis(heatmap.YAxisConfig().unit(units.String).axis_label(axis).axis_placement(common.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .show_legend()
        .tooltip(heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(False))
    )


def states(title: str, description: str, queries: Sequence[Query], mappings: dict[str, tuple[str, str]]) -> Panel:
    """A band for each series, coloured by its value. mappings: text and colour by value."""
    return (
        _common(statetimeline.Panel(), title, description, queries, "")
        .unit(units.NoUnit)
        .mappings([_mapped(mappings)])
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .legend(common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM))
        .color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(Steps(TEXT).build())
        .fill_opacity(80)
    )


def by_step(title: str, description: str, queries: Sequence[Query], unit: str, axis: str) -> Panel:
    """Points over the first query's values instead of time, one colour a job. The queries have the same labels."""
    tables = [Query(each.expression, each.legend, table=True) for each in queries]
    names = [each.legend for each in queries]
    renamed = {f"Value #{letter}": name for letter, name in zip("ABCD", names, strict=False)}
    x = xychart.XychartXYSeriesConfigX().matcher(_named(names[0]))
    y = xychart.XychartXYSeriesConfigY().matcher(_named(names[1]))
    return (
        _common(xychart.Panel(), title, description, tables, "")
        .unit(unit)
        .axis_label(axis)
        .transformations(
            [
                dashboard.DataTransformerConfig(id_val="merge", options={}),
                dashboard.DataTransformerConfig(id_val="organize", options={"renameByName": renamed}),
                dashboard.DataTransformerConfig(id_val="partitionByValues", options={"fields": ["job_name"]}),
            ]
        )
        .mapping(xychart_models.SeriesMapping.AUTO)
        .series([xychart.XYSeriesConfig().x(x).y(y)])
        .show(xychart_models.XYShowMode.POINTS_AND_LINES)
        .legend(common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM))
    )


def rows(
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: dict[str, str],
    column_units: dict[str, str],
    job_link: str = "",
) -> Panel:
    """A table with a row for each set of labels. columns: names by field, in order; others are left out."""
    organized = {"indexByName": {name: index for index, name in enumerate(columns)}, "renameByName": columns}
    shown = {"include": {"names": list(columns)}}
    made = (
        _common(table.Panel(), title, description, queries, "No jobs in this time range.")
        .unit(units.Short)
        .transformations(
            [
                dashboard.DataTransformerConfig(id_val="merge", options={}),
                dashboard.DataTransformerConfig(id_val="filterFieldsByName", options=shown),
                dashboard.DataTransformerConfig(id_val="organize", options=organized),
            ]
        )
        .filterable(True)
    )
    for name, unit in column_units.items():
        made = made.override_by_name(name, [dashboard.DynamicConfigValue(id_val="unit", value=unit)])
    if job_link:
        link = {"title": "Open its training", "url": job_link}
        made = made.override_by_name("Job", [dashboard.DynamicConfigValue(id_val="links", value=[link])])
    return made


def assembled(
    uid: str,
    title: str,
    description: str,
    variables: Iterable[Any],
    rows: Iterable[Row],
    annotations: Iterable[build.AnnotationQuery] = (),
    hours: int = 6,
) -> "File":
    """A dashboard with its panels in their places."""
    made = (
        build.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .editable()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time(f"now-{hours}h", "now")
        .timezone("browser")
        .refresh("30s")
        .variables(list(variables))
        .annotations(list(annotations))
        .links(links())
    )
    number, top = 0, 0
    for row in rows:
        number += 1
        made = made.with_row(build.Row(row.title).id(number).grid_pos(_place(0, top, WIDTH, 1)))
        top += 1
        for height, panels in row.lines:
            left = 0
            for width, panel in panels:
                number += 1
                made = made.with_panel(panel.id(number).grid_pos(_place(left, top, width, height)))
                left += width
            top += height
    return File(made)


@dataclass(frozen=True)
class File:
    """A dashboard that is ready to be written."""

    builder: build.Dashboard

    def to_json(self) -> str:
        """Grafana's classic JSON, which files, sidecars and imports load."""
        raw = json.loads(json.dumps(self.builder.build(), cls=JSONEncoder))
        return json.dumps(raw, sort_keys=True, indent=1) + "\n"


def _common(
    panel: Panel, title: str, description: str, queries: Sequence[Query], none: str, buckets: bool = False
) -> Panel:
    panel = panel.title(title).description(description).datasource(SOURCE)
    if none:
        panel = panel.no_value(none)
    if any("$__rate_interval" in each.expression for each in queries):
        panel = panel.interval(SCRAPE)
    for letter, each in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", queries, strict=False):
        form = PromQueryFormat.TABLE if each.table else PromQueryFormat.TIME_SERIES
        form = PromQueryFormat.HEATMAP if buckets else form
        query = Dataquery().datasource(SOURCE).ref_id(letter).expr(each.expression).format(form)
        query = query.instant() if each.instant else query.range()
        panel = panel.with_target(query.legend_format(each.legend))
    return panel


def _place(left: int, top: int, width: int, height: int) -> dashboard.GridPos:
    return dashboard.GridPos(x=left, y=top, w=width, h=height)


def _named(name: str) -> xychart.MatcherConfig:
    return xychart.MatcherConfig().id("byName").options(name)


def _mapped(mappings: dict[str, tuple[str, str]]) -> dashboard.ValueMap:
    options = {
        value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(mappings.items())
    }
    return dashboard.ValueMap(options=options)
