# shellcheck shell=bash
# Run dir, processes, waiting, cleaning up. Everything of one test-bed lives under
# $TESTBED_DIR; every process is recorded in $TESTBED_DIR/pids/NAME as "PID START-TIME".
#
# Knobs: TESTBED_DIR (a fresh one under /run/moat-testbed), TESTBED_KEEP (leave everything
# running at the end), TESTBED_KEEP_LOGS (end everything, but leave the files).
: "${testbed_lib:?source testbed.sh}"

# Prints a line about what is going on to stderr, with the seconds since the start.
tb_say() {
    local ms=$((($(date +%s%N) - ${TESTBED_START:-$(date +%s%N)}) / 1000000))
    printf '[%3d.%03d] %s\n' $((ms / 1000)) $((ms % 1000)) "$*" >&2
}

# Prints an error to stderr and returns 1 (which ends a script under set -e).
tb_fail() {
    printf 'testbed: error: %s\n' "$*" >&2
    return 1
}

# tb_tail FILE: shows the end of a log on stderr, if there is one.
tb_tail() {
    [ -s "${1:-}" ] || return 0
    printf 'testbed: end of %s:\n' "$1" >&2
    tail -n "${2:-15}" "$1" | sed 's/^/    | /' >&2
}

# wait_for SECONDS DESCRIPTION COMMAND...: polls COMMAND every 50 ms until it succeeds. On
# time-out: an error, and the end of the file named by WAIT_LOG.
wait_for() {
    local seconds=$1 what=$2 deadline late=0
    shift 2
    deadline=$(($(date +%s%N) + seconds * 1000000000))
    until "$@" >/dev/null 2>&1; do
        # Some tries more: a machine that stood still, or whose clock was set, has had no time.
        if [ "$(date +%s%N)" -ge "$deadline" ] && [ $((late += 1)) -gt 5 ]; then
            tb_tail "${WAIT_LOG:-}"
            tb_fail "gave up after $seconds s waiting for $what"
            return 1
        fi
        sleep 0.05
    done
}

# testbed_init: makes the run dir and its management network, and cleans up at the end of
# the script unless TESTBED_KEEP is set. The umask becomes 077: there are keys in it. Callers
# that need a trap of their own on EXIT must end it with testbed_on_exit.
testbed_init() {
    [ "$(id -u)" = 0 ] || { tb_fail "the test-bed must run as root"; return 1; }
    local paths=${MOAT_CACHE:-/var/cache/moat}/paths.sh
    [ -e "$paths" ] || { tb_fail "$paths is missing: run scripts/setup"; return 1; }
    # shellcheck disable=SC1090
    . "$paths"
    TESTBED_START=$(date +%s%N)
    umask 077
    if [ -z "${TESTBED_DIR:-}" ]; then
        mkdir -p /run/moat-testbed
        TESTBED_DIR=$(mktemp -d /run/moat-testbed/XXXXXX)
    fi
    mkdir -p "$TESTBED_DIR"/{pids,hosts,guests,bin,files}
    # Names outside of the run dir (namespaces, hugepage files) carry this prefix.
    TESTBED_ID=m$$
    printf '%s\n' "$TESTBED_ID" >"$TESTBED_DIR/id"
    printf '%s\n' "$TESTBED_START" >"$TESTBED_DIR/start"
    export TESTBED_DIR TESTBED_ID TESTBED_START
    trap testbed_on_exit EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mgmt_start
}

# testbed_attach DIR: works on a test-bed that another script left running.
testbed_attach() {
    umask 077
    TESTBED_DIR=$1
    [ -e "$TESTBED_DIR/id" ] || { tb_fail "$TESTBED_DIR is no test-bed"; return 1; }
    # shellcheck disable=SC1090,SC1091
    . "${MOAT_CACHE:-/var/cache/moat}/paths.sh"
    TESTBED_ID=$(<"$TESTBED_DIR/id")
    TESTBED_START=$(<"$TESTBED_DIR/start")
    export TESTBED_DIR TESTBED_ID TESTBED_START
}

testbed_on_exit() {
    local rc=$?
    trap - EXIT INT TERM HUP
    if [ -n "${TESTBED_KEEP:-}" ]; then
        tb_say "left running in $TESTBED_DIR; end it with: $testbed_lib/tb $TESTBED_DIR testbed_cleanup"
    else
        testbed_cleanup || true
    fi
    exit "$rc"
}

# --- processes ---

# testbed_spawn NAME LOG COMMAND...: starts COMMAND in the background and records its pid.
# It outlives the script if TESTBED_KEEP is set.
testbed_spawn() {
    local name=$1 log=$2
    shift 2
    if testbed_alive "$name"; then
        tb_fail "$name is running already"
        return 1
    fi
    (
        trap '' HUP INT
        trap - EXIT TERM
        exec "$@"
    ) </dev/null >>"$log" 2>&1 &
    local pid=$!
    disown "$pid" # no "Killed" messages of the shell: we look after it
    printf '%s %s\n' "$pid" "$(tb_start_time "$pid")" >"$TESTBED_DIR/pids/$name"
}

# tb_start_time PID: when it started, in ticks since boot; empty if it is gone or a zombie.
tb_start_time() {
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    stat=${stat##*) }
    # shellcheck disable=SC2086
    set -- $stat
    [ "$1" = Z ] || printf '%s' "${20}"
}

# testbed_pid NAME: the pid of a recorded process; fails if it no longer runs.
testbed_pid() {
    local pid start
    { read -r pid start <"$TESTBED_DIR/pids/$1"; } 2>/dev/null || return 1
    [ -n "$start" ] && [ "$(tb_start_time "$pid")" = "$start" ] || return 1
    printf '%s\n' "$pid"
}

# testbed_alive NAME: does it run?
testbed_alive() { testbed_pid "$1" >/dev/null; }
testbed_dead() { ! testbed_alive "$1"; }

# testbed_kill NAME [SIGNAL [SECONDS]]: signals a recorded process and waits for its end;
# after SECONDS (10) it is killed the hard way. Nothing to do is success.
testbed_kill() {
    local name=$1 signal=${2:-TERM} seconds=${3:-10} pid
    if pid=$(testbed_pid "$name"); then
        kill "-$signal" "$pid" 2>/dev/null || true
        if ! wait_for "$seconds" "$name to end" testbed_dead "$name" 2>/dev/null; then
            tb_say "$name did not end within $seconds s of SIG$signal; killing it"
            kill -KILL "$pid" 2>/dev/null || true
            wait_for 10 "$name to die" testbed_dead "$name" || return 1
        fi
    fi
    rm -f "$TESTBED_DIR/pids/$name"
}

# testbed_file PATH: a file outside of the run dir, to be removed at the end.
testbed_file() { : >"$TESTBED_DIR/files/$(printf '%s' "$1" | tr / ,)"; }

# testbed_cleanup: ends every process, then removes namespaces, files and the run dir.
testbed_cleanup() {
    local f ns name pid
    [ -n "${TESTBED_DIR:-}" ] && [ -e "$TESTBED_DIR/id" ] || return 0
    # First the guests, then everything else at once; the switches take longest.
    for f in "$TESTBED_DIR"/pids/guest-*; do
        if [ -e "$f" ]; then testbed_kill "${f##*/}" KILL || true; fi
    done
    for f in "$TESTBED_DIR"/pids/*; do
        [ -e "$f" ] || continue
        name=${f##*/}
        if pid=$(testbed_pid "$name"); then kill "$pid" 2>/dev/null || true; fi
    done
    for f in "$TESTBED_DIR"/pids/*; do
        [ ! -e "$f" ] || testbed_kill "${f##*/}" TERM 5 || true
    done
    for ns in $(ip netns list | awk -v id="$TESTBED_ID-" 'index($1, id) == 1 {print $1}'); do
        # Servers that workers left there in the background have no pid file.
        ip netns pids "$ns" | xargs -r kill -KILL || true
        ip netns del "$ns" || true
    done
    for f in "$TESTBED_DIR"/files/*; do
        [ ! -e "$f" ] || rm -rf -- "$(basename "$f" | tr , /)"
    done
    rm -rf "/var/run/dpdk/$TESTBED_ID-"*
    if [ -n "${TESTBED_KEEP_LOGS:-}" ]; then
        tb_say "logs are in $TESTBED_DIR"
        rm -f "$TESTBED_DIR/id"
    else
        rm -rf "$TESTBED_DIR"
        rmdir /run/moat-testbed 2>/dev/null || true
    fi
}
