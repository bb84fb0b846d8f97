# LiteLLM Proxy in a separate environment, with the part of Treasurer that it loads.
FROM python:3.11-slim AS build
WORKDIR /app
COPY requirements/bootstrap.txt requirements/proxy.txt requirements/
RUN python -m venv /uv && /uv/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt \
    && python -m venv --without-pip /venv \
    && /uv/bin/uv pip sync --no-cache --python /venv/bin/python --require-hashes requirements/proxy.txt \
    && (/venv/bin/python -m compileall -q -j 0 /venv/lib || true)

FROM python:3.11-slim
RUN useradd --system --create-home --uid 10001 treasurer && install -d -o treasurer /state
COPY --from=build /venv /venv
WORKDIR /app
COPY llm_service llm_service
COPY gateway/__init__.py gateway/__init__.py
COPY gateway/stack gateway/stack
COPY config config
COPY deploy/docker deploy/docker
RUN /venv/bin/python -m compileall -q llm_service gateway
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1
# All interfaces, because only the compose network reaches this port: it is not published.
ENV TREASURER_PROXY_HOST=0.0.0.0
USER treasurer
EXPOSE 4000
CMD ["python", "deploy/docker/proxy.py"]
