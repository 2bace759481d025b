# shellcheck shell=bash
# What the commands of packaging/ share: steps with a time, apt, and a Go
# toolchain on a machine that may have none. To be sourced, from the top of
# the checkout, by a script that has said "set -euo pipefail".

# The Go release that this project is built with where the machine has no Go
# that is new enough. It is fetched as a module, so the checksum database
# vouches for it, and every machine gets the same one.
go_release=1.26.8

# step NAME COMMAND... runs the command and prints one line with the seconds
# it took; of its output the end is shown only if it failed.
step() {
    local name=$1 start=$SECONDS log rc flags=$-
    shift
    log=$(mktemp)
    # Never as "step ... ||" or "if step": bash then ignores the inner "set -e".
    set +e
    (set -e; "$@") >"$log" 2>&1 </dev/null
    rc=$?
    case $flags in *e*) set -e ;; esac
    if [ "$rc" = 0 ]; then
        printf 'ok    %4d s  %s\n' $((SECONDS - start)) "$name"
    else
        printf 'FAIL  %4d s  %s (exit code %d)\n' $((SECONDS - start)) "$name" "$rc"
        tail -n "${step_tail:-60}" "$log" | sed 's/^/      /'
    fi
    rm -f "$log"
    return "$rc"
}

# need_root stops a script that has to install packages.
need_root() {
    [ "$(id -u)" = 0 ] && return
    echo "$0: run it as root (sudo $0): it installs packages and makes network namespaces" >&2
    exit 2
}

# real_root SCRIPT ARGUMENTS... runs the script again if "/" is not a mount
# point, as in a plain chroot: "ip netns" and systemd-nspawn refuse to work
# there. The same tree, bound to a directory, is one.
real_root() {
    unshare --mount true 2>/dev/null && return
    [ -z "${REAL_ROOT-}" ] || return 0
    local dir rc=0
    dir=$(mktemp -d)
    # shellcheck disable=SC2016
    REAL_ROOT=1 unshare --mount --propagation unchanged sh -c '
        dir=$1 pwd=$2 && shift 2
        mount --rbind / "$dir" || exit 126
        chroot "$dir" sh -c "cd \"\$1\" && shift && exec \"\$@\"" sh "$pwd" "$@"
        rc=$?
        umount -l "$dir"
        exit $rc' sh "$dir" "$PWD" "$@" || rc=$?
    rmdir "$dir" 2>/dev/null || true
    [ "$rc" = 126 ] || exit "$rc"
}

# apt_install PACKAGE... installs what is missing, without a question.
apt_install() {
    local missing=() package
    for package; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=600 update
    apt-get -qq -y -o DPkg::Lock::Timeout=600 --no-install-recommends install "${missing[@]}"
}

# go_wanted prints the version that go.mod asks for.
go_wanted() { sed -n 's/^go \([0-9.]*\).*/\1/p' go.mod; }

# go_ok GO tells whether that program is a Go that can build this module.
go_ok() {
    local have
    have=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    have=${have#go}
    [ "$(printf '%s\n' "$(go_wanted)" "${have%%[!0-9.]*}" | sort -V | head -n 1)" = "$(go_wanted)" ]
}

# toolchain_dir prints where the go command keeps the fetched toolchain.
toolchain_dir() {
    printf '%s/golang.org/toolchain@%s' "$(cd / && go env GOMODCACHE)" "$(toolchain_version)"
}
toolchain_version() { printf 'v0.0.1-go%s.linux-%s' "$go_release" "$(dpkg --print-architecture)"; }

# fetch_toolchain gets Go as the module golang.org/toolchain. Any Go since 1.16
# can do that; only those since 1.21 would also run it by themselves, and
# Debian 12 has 1.19. The download leaves the programs without their x bit,
# because module files have none. Outside the checkout, as an old Go does not
# understand its go.mod.
fetch_toolchain() {
    (cd / && GOFLAGS='' GOTOOLCHAIN=local go mod download "golang.org/toolchain@$(toolchain_version)")
    chmod +x "$(toolchain_dir)"/bin/* "$(toolchain_dir)"/pkg/tool/*/*
}

# use_go puts a Go that can build this module first in PATH: the machine's own
# if it has one, else the fetched one. It needs root only to install apt's Go.
use_go() {
    local go
    export GOTOOLCHAIN=local
    for go in "$(command -v go || true)" /usr/local/go/bin/go; do
        if [ -x "$go" ] && go_ok "$go"; then
            PATH=$(dirname "$go"):$PATH
            return
        fi
    done
    step "a Go to fetch Go with" apt_install golang-go ca-certificates
    unset GOROOT
    [ -x "$(toolchain_dir)/bin/gofmt" ] || step "Go $go_release" fetch_toolchain
    PATH=$(toolchain_dir)/bin:$PATH
    go_ok go || { echo "use go: $(command -v go) is older than go.mod's $(go_wanted)" >&2; return 1; }
}
