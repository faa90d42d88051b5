# The teacher server on a CPU. Build: docker build -t preceptor .   Run, with keys and TLS (docs/access.md):
#   docker run -p 50051:50051 -v /path/to/model:/model:ro -v /path/to/secrets:/secrets:ro preceptor --engine.model /model \
#     --access.file /secrets/access.toml --tls.certificate /secrets/server.pem --tls.key /secrets/server.key
# It listens on all addresses of its container, and so refuses to start without them unless --listen.allow-insecure true.
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
ENV PRECEPTOR_SERVER_LISTEN__HOST=0.0.0.0
EXPOSE 50051
ENTRYPOINT ["preceptor-server"]
