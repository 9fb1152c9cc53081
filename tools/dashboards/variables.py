"""The variables of the dashboards, and the links and annotations that use them."""

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard

from tools.dashboards.queries import IN_CLUSTER, IN_NAMESPACE, Query

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "tailorpo"
ANY = ".*"
"""The value of "All": also matches a series that does not have the label, as where there is only one cluster."""


def datasource() -> build.DatasourceVariable:
    return build.DatasourceVariable("datasource").label("Data source").type("prometheus")


def labels(name: str, label: str, metric: str, what: str, within: str = "", sole: bool = False) -> build.QueryVariable:
    """A variable with the values of a label among the series that lived in the time range: no dead ones.

    within: matchers for the series. sole: some value must be chosen, so that no panel mixes all of them.
    """
    expression = f"query_result(group by ({label}) (last_over_time({metric}{{{within}}}[$__range])))"
    made = (
        build.QueryVariable(name)
        .label(name.capitalize())
        .description(what)
        .datasource(SOURCE)
        .query({"query": expression, "refId": name, "qryType": 3})
        .definition(expression)
        .regex(f'/{label}="([^"]+)"/')
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
    )
    return made if sole else made.include_all(True).all_value(ANY)


def cluster(metric: str) -> build.QueryVariable:
    return labels("cluster", "cluster", metric, "Where Prometheus keeps several clusters apart by the label `cluster`.")


def namespace(metric: str) -> build.QueryVariable:
    return labels("namespace", "job_namespace", metric, "Namespaces of jobs.", IN_CLUSTER)


def job(metric: str) -> build.QueryVariable:
    what = "Jobs that were alive in the time range; choose several to compare them."
    return labels("job", "job_name", metric, what, IN_NAMESPACE, sole=True)


def smoothing() -> build.IntervalVariable:
    window = dashboard.VariableOption(text="10m", value="10m", selected=True)
    return (
        build.IntervalVariable("smoothing")
        .label("Smoothing")
        .description("Window of the smoothed lines.")
        .values("1m,5m,10m,30m,1h,3h,12h")
        .current(window)
    )


def links() -> list[Builder[dashboard.DashboardLink]]:
    """To the other dashboards, with the same variables and time."""
    others = build.DashboardLink("TailorPO").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    return [others.include_vars(True).keep_time(True)]


def annotation(name: str, colour: str, query: Query, title: str, at_value: bool, shown: bool) -> build.AnnotationQuery:
    """Marks in all panels. at_value: at the time that the value names (milliseconds), else while there is a value."""
    return (
        build.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(shown)
        .icon_color(colour)
        .expr(query.expression)
        .title_format(title)
        .text_format(query.legend)
        .use_value_for_time(at_value)
        .step("30s")
    )
