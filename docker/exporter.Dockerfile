# The exporter: a folder of weights in, a build out. Needs no network, and a GPU only for --target tensorrt.
#   docker build -f docker/exporter.Dockerfile -t triptych-exporter:0.1.0 .
ARG PYTHON_TAG=3.12-slim-trixie

FROM python:${PYTHON_TAG} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# Where torch comes from; empty is PyPI, whose wheel carries CUDA. An index of CPU wheels makes the image much smaller.
ARG TORCH_INDEX_URL=
# TensorRT-RTX builds engines ahead of time, without a GPU.
ARG GPU_EXTRA=tensorrt-rtx
# For data-centre GPUs: `tensorrt-cu13==…`, of the version that the server's base image says in TRT_VERSION.
ARG TENSORRT=
WORKDIR /src
RUN python3 -m venv --without-pip /opt/build && python3 -m venv --without-pip /opt/triptych
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/triptych/bin/python3 install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
        -c constraints.txt torch
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py pyproject.toml export ${GPU_EXTRA:+"$GPU_EXTRA"} --without nvidia-pytriton > requirements.txt \
    && echo "${TENSORRT}" >> requirements.txt \
    && pip --python /opt/build/bin/python3 install -c constraints.txt hatchling \
    && pip --python /opt/triptych/bin/python3 install -c constraints.txt -r requirements.txt
COPY README.md LICENSE NOTICE ./
COPY contract contract
COPY model_repository model_repository
COPY client client
COPY server server
COPY web web
COPY page page
COPY api api
COPY cluster cluster
COPY export export
COPY lab lab
RUN pip --python /opt/build/bin/python3 wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels . ./server \
    && pip --python /opt/triptych/bin/python3 install --no-cache-dir --no-deps /wheels/*.whl

FROM python:${PYTHON_TAG}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Triptych exporter" \
      org.opencontainers.image.description="SDXL and Stable Cascade weights to ONNX stages, TensorRT engines, sampler tables and a manifest" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/triptych /opt/triptych
# Engines are kept beside the builds that link to them, in a folder that the server does not look into.
# A new volume takes this owner, the same as the server's, who reads what is written here.
RUN mkdir /models && chown 10001:10001 /models
ENV PATH=/opt/triptych/bin:${PATH} \
    HOME=/tmp \
    XDG_CACHE_HOME=/models/.cache \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /models
STOPSIGNAL SIGINT
HEALTHCHECK NONE
ENTRYPOINT ["triptych", "export"]
