# The HTTP front, which calls a server: no Triton, no ONNX Runtime, no models.
#   docker build -f docker/api.Dockerfile -t triptych-api:0.1.0 .
ARG PYTHON_TAG=3.12-slim-trixie

FROM python:${PYTHON_TAG} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv --without-pip /opt/build && python3 -m venv --without-pip /opt/triptych
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py pyproject.toml postgres > requirements.txt \
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
LABEL org.opencontainers.image.title="Triptych HTTP front" \
      org.opencontainers.image.description="OpenAI's images, jobs and A1111's HTTP over a Triptych server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/triptych /opt/triptych
# A new volume takes this owner: keys and jobs are there, and nobody else reads them.
RUN mkdir -m 700 /api && chown 10001:10001 /api
ENV PATH=/opt/triptych/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-IS", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
# Beyond loopback the front asks for keys; without their file it does not start.
ENTRYPOINT ["triptych", "api", "--host", "0.0.0.0", "--keys", "/api/keys.json", "--jobs", "/api/jobs.db"]
