#!/bin/sh
# Each file in /run/secrets that is named like an environment variable becomes that variable, so that
# no secret has to stand in a container's description. Then the command runs.
set -eu
for file in /run/secrets/[A-Z]*; do
    name=${file##*/}
    case $name in *[!A-Z0-9_]*) continue ;; esac
    if [ -f "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
    fi
done
exec "$@"
