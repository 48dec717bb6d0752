#!/bin/sh
# Installs playwright-core and axe-core, then tests the playground: its pure logic, and the page in Chromium. Needs node 20
# and Debian's chromium (`apt-get install chromium`; another place by CHROMIUM=/path).
#
#   tests/browser/run.sh                                        against the mock server
#   tests/browser/run.sh STEERKIT [MODEL VECTORS]               against `steerkit serve`, by default on a tiny model
#   STEERKIT_URL=http://127.0.0.1:8080 tests/browser/run.sh     against a server that runs, with a vector
set -eu
# Paths of the caller hold after the change of folder.
for path in "$@"; do
    shift
    set -- "$@" "$(realpath "$path")"
done
cd "$(dirname "$0")"
[ -d node_modules/axe-core ] && [ -d node_modules/playwright-core ] ||
    npm install --no-audit --no-fund --no-package-lock --ignore-scripts
node --test unit/*.test.js
if [ $# -gt 0 ]; then
    node real.js "$@"
else
    node --test page.test.js
fi
