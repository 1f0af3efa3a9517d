#!/bin/sh
# Serves what lies in $TRIPTYCH_BUILDS: a build, a folder of builds (one of each family), or `demo`, the model that ships
# with Triptych. Arguments are passed on to `triptych serve`.
set -eu

builds=${TRIPTYCH_BUILDS:-/models}

if [ "$builds" = demo ]; then
    :
elif [ -f "$builds/manifest.json" ]; then
    set -- "$@" "$builds"
else
    given=$#
    for manifest in "$builds"/*/manifest.json; do
        if [ -f "$manifest" ]; then
            set -- "$@" "${manifest%/manifest.json}"
        fi
    done
    if [ "$#" -eq "$given" ]; then
        echo "error: no build in $builds: mount one that \`triptych export\` made, or set TRIPTYCH_BUILDS=demo" >&2
        exit 1
    fi
fi

if [ "${TRIPTYCH_LOGS:-1}" = 1 ]; then
    set -- --logs "$@"
fi

# All addresses of the container: which of the host's lead here, whoever publishes the ports decides.
exec triptych serve --host "${TRIPTYCH_HOST:-0.0.0.0}" --grace "${TRIPTYCH_GRACE:-30}" \
    --cache-mb "${TRIPTYCH_CACHE_MB:-256}" "$@"
