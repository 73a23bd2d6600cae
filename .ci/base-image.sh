#!/usr/bin/env bash
# Base images without a container registry: Debian's own Python, by mmdebstrap and `docker import`. Users take
# python:3.11-slim; CI gives these as BUILD_IMAGE and BASE_IMAGE instead.
#
#   .ci/base-image.sh WORK_DIR     makes  watcher-base:build (with pip, venv and apt)  and  watcher-base:run
#
# Both come from one root folder, which WORK_DIR keeps, so that a second call takes seconds.
set -euo pipefail
work=${1:?usage: .ci/base-image.sh WORK_DIR}
root=$work/rootfs
mkdir -p "$work"
if [ ! -e "$root/.done" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: //p' | head -1)
    [ -n "$mirror" ] || mirror=$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)
    mmdebstrap --quiet --variant=apt --include=python3,python3-venv,ca-certificates bookworm "$work/rootfs.tar" "$mirror"
    tar -C "$root" --exclude='./dev/*' -xf "$work/rootfs.tar"
    rm "$work/rootfs.tar"
    touch "$root/.done"
fi
# What the official image has and Debian's python lacks; and this machine's way to the packages, if it has one.
mkdir -p "$root/usr/local/bin"
ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
[ -e /etc/pip.conf ] && cp -L /etc/pip.conf "$root/etc/pip.conf"

settings=(-c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'ENV LANG=C.UTF-8' -c 'CMD ["python3"]')
tar -C "$root" --numeric-owner --exclude=./.done -c . | docker import "${settings[@]}" - watcher-base:build >/dev/null
# Nothing that runs needs what builds: apt, dpkg, perl, the wheels of ensurepip, documentation.
tar -C "$root" --numeric-owner --exclude=./.done --exclude=./etc/pip.conf \
    --exclude='./var/cache/*' --exclude='./var/lib/apt/*' --exclude='./var/lib/dpkg/*' --exclude='./var/log/*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' \
    --exclude='./usr/share/python-wheels' --exclude='./usr/lib/python3.11/ensurepip' --exclude='./usr/share/perl*' \
    --exclude='./usr/lib/x86_64-linux-gnu/perl*' --exclude='./usr/bin/perl*' --exclude='./usr/bin/apt*' \
    --exclude='./usr/lib/apt' --exclude='./usr/bin/dpkg*' --exclude='./usr/lib/x86_64-linux-gnu/libapt*' \
    --exclude='__pycache__' -c . | docker import "${settings[@]}" - watcher-base:run >/dev/null
docker image ls watcher-base
