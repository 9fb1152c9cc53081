# Builds two images: `docker build --target trainer -t tailorpo-trainer:0.1.0 .`, and the same with `operator`.
# BASE may be any Debian or Ubuntu with a Python that pyproject.toml allows; PyTorch includes its own CUDA libraries.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PROJECT_ENVIRONMENT=/opt/tailorpo
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv>=0.9,<1"
WORKDIR /src
# The locked packages are installed first, so that a change in this repository does not install PyTorch again.
COPY pyproject.toml uv.lock ./

FROM build AS build-operator
RUN /opt/uv/bin/uv sync --locked --no-dev --no-install-project --extra operator
COPY README.md LICENSE ./
COPY operator operator
COPY trainer trainer
RUN /opt/uv/bin/uv sync --locked --no-dev --no-editable --extra operator

FROM build AS build-trainer
RUN /opt/uv/bin/uv sync --locked --no-dev --no-install-project --extra trainer --extra tensorboard
COPY README.md LICENSE ./
COPY operator operator
COPY trainer trainer
RUN /opt/uv/bin/uv sync --locked --no-dev --no-editable --extra trainer --extra tensorboard

FROM ${BASE} AS operator
COPY --from=build-operator /opt/tailorpo /opt/tailorpo
ENV PATH=/opt/tailorpo/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["tailorpo"]
CMD ["operator"]

FROM ${BASE} AS trainer
COPY --from=build-trainer /opt/tailorpo /opt/tailorpo
ENV PATH=/opt/tailorpo/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["tailorpo"]
