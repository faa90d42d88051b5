# The teacher server on a CPU. Build: docker build -t preceptor .   Run:
#   docker run -p 50051:50051 -v /path/to/model:/model:ro preceptor --engine.model /model
# The GPU image comes with deployment. `make docker-check` runs these steps without a Docker engine.
FROM python:3.11-slim AS cpu
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto ./proto
COPY server ./server
COPY client ./client
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt torch==2.13.0
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[server,demo]'
RUN useradd --system --create-home preceptor
USER preceptor
ENV PRECEPTOR_SERVER_LISTEN__HOST=0.0.0.0 PRECEPTOR_SERVER_LISTEN__ALLOW_INSECURE=true
EXPOSE 50051
ENTRYPOINT ["preceptor-server"]
