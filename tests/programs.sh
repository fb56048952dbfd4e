#!/bin/sh
# Programs that tests look at our work through, from Debian's packages: PROGRAM=PACKAGE ... Never fails: a test whose
# program cannot be had here (no right to install, no network, another system) is skipped and says so.
missing=""
for each in "$@"; do
    command -v "${each%%=*}" >/dev/null || missing="$missing ${each#*=}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=""
elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    missing_right=1
fi
if [ -n "$missing_right" ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and nobody here may install it:$missing; the tests that need it are skipped" >&2
    exit 0
fi

apt_get() { # SECONDS, and what apt-get is told
    limit=$1
    shift
    $sudo env DEBIAN_FRONTEND=noninteractive timeout "$limit" apt-get -qq -o DPkg::Lock::Timeout=60 \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@" </dev/null >/dev/null 2>&1
}
apt_get 120 update
for package in $missing; do # one by one: what can be had is had
    apt_get 420 install -y --no-install-recommends "$package" ||
        echo "apt-get cannot install $package here; the tests that need it are skipped" >&2
done
exit 0
