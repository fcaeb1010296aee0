# Everything that runs without torch: broker, merge controller, topics, load generator. Builds with the classic builder and with BuildKit.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/venv
COPY infra/docker/requirements.py pyproject.toml constraints.txt ./
RUN python requirements.py report otel >requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir --quiet -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY services services
COPY loadgen loadgen
COPY proto proto
RUN /opt/venv/bin/pip install --no-cache-dir --quiet -c constraints.txt --no-deps . \
 && /opt/venv/bin/pip uninstall --quiet --yes pip setuptools

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="moedge services" \
      org.opencontainers.image.description="Offload broker, merge controller and load generator of moedge" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp moedge \
 && install -d -o moedge -g moedge /var/lib/moedge /etc/moedge
COPY --from=build /opt/venv /opt/venv
COPY infra/edges/compose.toml /etc/moedge/edges.toml
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 9464
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "services.runtime.probe"]
ENTRYPOINT ["moedge"]
CMD ["--help"]
