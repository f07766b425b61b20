# shellcheck shell=bash
# What the system tests share: checks that print what they check, a machine outside of Moat,
# and questions to both ends. Each test sources this file and begins with system_test.
#
# A check that fails does not end the test, but `verdict` makes it exit 1. Anything else
# that fails ends it at once, says where, and shows the ends of the logs. Knobs: those of
# scripts/testbed, such as MOAT_BUILD, TESTBED_KEEP=1 and TESTBED_KEEP_LOGS=1.
set -euo pipefail
system_lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$system_lib/../../scripts/testbed/testbed.sh"
. "$system_lib/../../scripts/testbed/moat.sh"
export LC_ALL=C.UTF-8

checks=0
failures=()
test_start=$SECONDS

# system_test: the product is built, the test-bed is there and will be cleaned up.
system_test() {
    moat_init
    TEST_TMP=$TESTBED_DIR/test
    mkdir -p "$TEST_TMP"
    trap test_on_exit EXIT
    set -E
    trap '[ $BASH_SUBSHELL != 0 ] || printf "FAILED: %s (%s, line %s)\n" "$BASH_COMMAND" "${BASH_SOURCE[0]##*/}" "$LINENO" >&2' ERR
}

test_on_exit() {
    local rc=$?
    trap - ERR
    set +e
    [ $rc = 0 ] || show_logs
    (exit $rc)
    testbed_on_exit
}

# show_logs: the end of what the hosts' programs have to say.
show_logs() {
    local f
    for f in "$TESTBED_DIR"/hosts/*/moatd.log; do tb_tail "$f" 25; done
    for f in "$TESTBED_DIR"/hosts/*/ovs-vswitchd.log; do
        [ ! -e "$f" ] || grep -E 'moat: |libmoat|\|(EMER|ERR)\|' "$f" >"$f.moat" || true
        tb_tail "$f.moat" 8
    done
}

part() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - test_start)); }

# check TEXT COMMAND...: one check.
check() {
    local text=$1
    shift
    checks=$((checks + 1))
    if (trap - ERR; "$@") >"$TEST_TMP/check" 2>&1; then
        printf 'ok      %s\n' "$text"
    else
        printf 'NOT OK  %s\n' "$text"
        tail -n 6 "$TEST_TMP/check" | sed 's/^/        | /'
        failures+=("$text")
    fi
}

# check_equal TEXT GOT WANTED, check_most, check_least TEXT GOT LIMIT.
check_equal() { check "$1: $2$([ "$2" = "$3" ] || printf ' (expected %s)' "$3")" [ "$2" = "$3" ]; }
check_most() { check "$1: $2$([ "$2" -le "$3" ] 2>/dev/null || printf ' (at most %s expected)' "$3")" [ "$2" -le "$3" ]; }
check_least() { check "$1: $2$([ "$2" -ge "$3" ] 2>/dev/null || printf ' (at least %s expected)' "$3")" [ "$2" -ge "$3" ]; }

# check_same TEXT GOT WANTED: for long texts; shows how they differ.
check_same() { check "$1" diff <(printf '%s\n' "$3") <(printf '%s\n' "$2"); }

# check_soon SECONDS TEXT COMMAND...: COMMAND has some time to succeed; if it never does, what it said last is shown.
check_soon() {
    local seconds=$1 text=$2
    shift 2
    check "$text" soon "$seconds" "$text" "$@"
}
soon() {
    wait_for "$1" "$2" "${@:3}" && return
    "${@:3}" || true
    return 1
}

# Conditions. says PATTERN COMMAND...: does it print that?
not() { ! "$@"; }
says() { { "${@:2}" 2>&1 || true; } | grep -E -- "$1"; }
is() { [ "$("${@:2}" 2>/dev/null)" = "$1" ]; }             # VALUE COMMAND...
at_least() { [ "$("${@:2}" 2>/dev/null)" -ge "$1" ]; }     # NUMBER COMMAND...

# try COMMAND...: what it prints, "none" if it fails.
try() { "$@" 2>/dev/null || echo none; }

# log_lines FILE PATTERN: how many lines of a log match.
log_lines() { grep -cE -- "$2" "$1" || true; }

# verdict: the last lines.
verdict() {
    local text
    if [ ${#failures[@]} -eq 0 ]; then
        printf '\nall %d checks hold (%d s)\n' "$checks" $((SECONDS - test_start))
        return 0
    fi
    printf '\n%d of %d checks do not hold (%d s):\n' "${#failures[@]}" "$checks" $((SECONDS - test_start))
    for text in "${failures[@]}"; do printf '  %s\n' "$text"; done
    exit 1
}

# policy NAME: standard input becomes the policy of the cluster; waits until it is enforced.
policy() {
    cat >"$TEST_TMP/$1.moat"
    moat_admin policy apply "$TEST_TMP/$1.moat" --wait 20
}

# --- a machine outside ---

# outside_start HOST ADDRESS[,ADDRESS6]: a machine on the wire that is no VM, called "outside": a network
# namespace behind a DPDK port of that host's bridge. No slot judges what it sends or gets,
# and it outlives the switch. The worker of guests runs in it: guest_cmd outside ...
outside_start() {
    local host=$1 addr=${2%,*} addr6='' ns=$TESTBED_ID-outside dir
    [[ $2 != *,* ]] || addr6=${2#*,}
    dir=$(guest_dir outside)/$host
    mkdir -p "$dir"
    printf '%s\n' "$host" >"$(guest_dir outside)/host"
    printf '%s\n' "$addr" >"$(guest_dir outside)/addr"
    printf '%s\n' "$addr6" >"$(guest_dir outside)/addr6"
    printf '02:00:00:00:00:%02x\n' "${addr##*.}" >"$(guest_dir outside)/mac"
    netns_add "$ns"
    ip -n "$(host_ns "$host")" link add to-outside type veth peer name eth0 netns "$ns"
    ip -n "$ns" link set eth0 address "$(moat_mac outside)"
    ip -n "$ns" addr add "$addr/24" dev eth0
    if [ -n "$addr6" ]; then
        ip netns exec "$ns" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
        ip -n "$ns" addr add "$addr6/64" dev eth0 nodad
    fi
    ip -n "$ns" link set eth0 up
    host_wire "$host" outside
    guest_programs "$TESTBED_DIR/bin"
    testbed_spawn guest-outside "$dir/agent.out" ip netns exec "$ns" env "PATH=$TESTBED_DIR/bin:$PATH" agent "unix:$dir/cmd.sock"
    WAIT_LOG=$dir/agent.out wait_for 10 "the machine outside" guest_cmd outside hello
}

# traffic NAME COMMAND...: what scripts/testbed/guest/traffic.c has to say of one thing there.
traffic() { guest_cmd "$1" shell "traffic ${*:2} 2>&1"; }

# neighbours NAME OTHER...: NAME knows the others' MAC addresses without asking: what it sends
# to them is on the wire whatever happens to ARP.
neighbours() {
    local name=$1 other
    shift
    for other; do
        if [ "$name" = outside ]; then
            ip -n "$TESTBED_ID-outside" neigh replace "$(moat_addr "$other")" lladdr "$(moat_mac "$other")" dev eth0 nud permanent
        else
            guest_cmd "$name" shell "arp -s $(moat_addr "$other") $(moat_mac "$other")"
        fi
    done
}
