# The gateway, and the command `treasurer`. The gateway is one process: to scale it, start more containers.
FROM python:3.11-slim AS build
WORKDIR /app
COPY requirements/bootstrap.txt requirements/app.txt requirements/
RUN python -m venv /uv && /uv/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt \
    && python -m venv --without-pip /venv \
    && /uv/bin/uv pip sync --no-cache --compile-bytecode --python /venv/bin/python --require-hashes requirements/app.txt
COPY pyproject.toml README.md LICENSE ./
COPY llm_service llm_service
COPY agents agents
COPY gateway gateway
COPY config config
RUN /uv/bin/uv pip install --no-cache --python /venv/bin/python --no-deps --no-build-isolation -e . \
    && /venv/bin/python -m compileall -q llm_service agents gateway

FROM python:3.11-slim
RUN useradd --system --create-home --uid 10001 treasurer
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 TREASURER_DATA_DIR=/home/treasurer/data
USER treasurer
EXPOSE 4100
CMD ["python", "-m", "gateway.serve"]
