# Prometheus and Alertmanager of Debian, for machines that reach no container registry. CI gives it as PROMETHEUS_IMAGE.
FROM watcher-base:build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager >/dev/null \
    && ln -s /usr/bin/prometheus-alertmanager /usr/local/bin/alertmanager \
    && install -d -o 65534 -g 65534 /prometheus
VOLUME ["/prometheus"]
USER 65534:65534
