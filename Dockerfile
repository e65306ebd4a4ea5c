# Two images from one file: `service` answers HTTP and has no torch; `worker` trains.
FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 1000 regtrain && mkdir /data && chown regtrain /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY regtrain regtrain

FROM base AS service
COPY service service
RUN pip install -c constraints.txt '.[service,postgres]'
USER regtrain
VOLUME /data
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:8321/healthz').raise_for_status()"]
CMD ["python", "-P", "-m", "service"]

FROM base AS worker
COPY worker worker
RUN pip install -c constraints.txt '.[worker,postgres]'
USER regtrain
VOLUME /data
STOPSIGNAL SIGTERM
CMD ["python", "-P", "-m", "worker"]
