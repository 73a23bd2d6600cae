# One image for workers, the listener and every command; no shell is needed to run it.
#
#   docker build -t watcher .                              the suite, with the stand-in agent
#   docker build -t watcher:claude --target claude .       with Claude Code in it
#
# Another agent CLI is a layer of yours on top: docs/containers.md. A login is never baked in.
# Everything is `docker run IMAGE MODULE ...`: worker_watcher marie, orchestrator_listener, demo_watcher --status,
# watcher health marie.
ARG BASE_IMAGE=python:3.11-slim
ARG BUILD_IMAGE=${BASE_IMAGE}

# --- build: pip and setuptools are here and nowhere else
FROM ${BUILD_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/watcher
# What seldom changes first, so that its layer is kept.
COPY docker/requirements.txt ./
RUN /opt/watcher/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md *.py ./
COPY watcher watcher
RUN /opt/watcher/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps . \
    && /opt/watcher/bin/pip check \
    && /opt/watcher/bin/pip uninstall --quiet --yes setuptools pip \
    && install -d -o 10001 -g 10001 /made/data /made/work /made/home/agent

# --- what runs
FROM ${BASE_IMAGE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="watcher" \
      org.opencontainers.image.description="Run a team of named AI agents from plain folders" \
      org.opencontainers.image.version="${VERSION}"
# Some agent CLIs refuse a user without a name. No shell is used, so a base without one works.
RUN ["python", "-c", "open('/etc/passwd', 'a').write('agent:x:10001:10001::/home/agent:/nonexistent\\n'); open('/etc/group', 'a').write('agent:x:10001:\\n')"]
COPY --from=build /opt/watcher /opt/watcher
COPY --from=build --chown=10001:10001 /made/ /
ENV PATH=/opt/watcher/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/agent \
    WATCHER_ROOT=/data \
    METRICS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /work
VOLUME ["/data"]
EXPOSE 9090
# -I: neither the agents' folder nor their variables can change what python imports.
ENTRYPOINT ["python", "-I", "-u", "-m"]
CMD ["worker_watcher", "--help"]

# --- with Claude Code: its program comes in the wheel of the claude extra
FROM build AS claude-program
ARG CLAUDE_SDK_VERSION=0.2.187
RUN python -m venv /opt/sdk && /opt/sdk/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary :all: --target /sdk "claude-agent-sdk==${CLAUDE_SDK_VERSION}" \
    && install -D -m 0755 /sdk/claude_agent_sdk/_bundled/claude /made-claude/claude && rm -rf /sdk

FROM runtime AS claude
COPY --from=claude-program /made-claude/claude /usr/local/bin/claude
ENV PROVIDER=claude DISABLE_AUTOUPDATER=1

# --- the default: the suite alone, which works without an account
FROM runtime AS standin
ENV PROVIDER=command AGENT_COMMAND="python -I -m watcher.standin"
