#!/bin/sh
# Installs the browser that tests/browser drives, and a font for it to write with. Where that
# cannot be done it says what is missing and succeeds: those tests then skip by name.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

for name in chromium chromium-browser google-chrome; do
    if have "$name"; then
        echo "browser tests use $(command -v "$name")"
        exit 0
    fi
done

if [ "$(id -u)" -ne 0 ] || ! have apt-get; then
    echo "browser tests will be skipped: no chromium here, and installing it takes root and apt-get" >&2
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
if apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; then
    echo "browser tests use $(command -v chromium)"
else
    echo "browser tests will be skipped: apt-get could not install chromium" >&2
fi
