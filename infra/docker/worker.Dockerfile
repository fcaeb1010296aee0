# Edge worker and cloud merger: what runs the model, with torch. Builds with the classic builder and with BuildKit.
FROM python:3.11-slim-bookworm AS build
# Where torch comes from: the CPU build by default. Empty: pip's own index, which brings CUDA on Linux.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/venv
COPY infra/docker/requirements.py pyproject.toml constraints.txt ./
RUN /opt/venv/bin/pip install --no-cache-dir --quiet --no-deps --retries 1 ${TORCH_INDEX:+--index-url $TORCH_INDEX} "$(grep '^torch==' constraints.txt)" \
 && rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test
RUN python requirements.py worker otel >requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir --quiet -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY services services
COPY loadgen loadgen
COPY proto proto
RUN /opt/venv/bin/pip install --no-cache-dir --quiet -c constraints.txt --no-deps . \
 && /opt/venv/bin/pip uninstall --quiet --yes pip setuptools

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="moedge worker" \
      org.opencontainers.image.description="Edge worker and cloud merger of moedge, with torch and the demo model" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp moedge \
 && install -d -o moedge -g moedge /var/lib/moedge /etc/moedge
COPY --from=build /opt/venv /opt/venv
COPY infra/demo-model /opt/moedge/demo-model
COPY infra/edges/compose.toml /etc/moedge/edges.toml
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 9464
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "services.runtime.probe"]
ENTRYPOINT ["moedge"]
CMD ["--help"]
