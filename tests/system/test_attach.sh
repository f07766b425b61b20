#!/bin/bash
# libmoat.so leaves other programs alone, and refuses a switch that it does not fit before that
# takes traffic.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# with COMMAND...: with libmoat.so preloaded, as whatever a switch's start script runs.
with() { env LD_PRELOAD="$MOAT_PRELOAD" "$@"; }

# alone COMMAND...: with libmoat.so preloaded it prints the same, to both outputs, and ends with
# the same code.
alone() {
    all_of "$@" >"$TEST_TMP/without"
    all_of with "$@" >"$TEST_TMP/with"
    diff "$TEST_TMP/without" "$TEST_TMP/with"
}
all_of() {
    local rc=0
    "$@" 2>"$TEST_TMP/stderr" </dev/null || rc=$?
    sed 's/^/stderr: /' "$TEST_TMP/stderr"
    echo "exit code $rc"
}

# refuses PATTERN PRELOAD COMMAND...: it ends at once, not with 0, and says why, loudly.
refuses() {
    local pattern=$1 preload=$2 rc=0
    shift 2
    timeout 10 env LD_PRELOAD="$preload" "$@" >"$TEST_TMP/out" 2>&1 </dev/null || rc=$?
    cat "$TEST_TMP/out"
    echo "exit code $rc"
    [ $rc != 0 ] && [ $rc != 124 ] && grep -qE "libmoat: refusing this switch: $pattern" "$TEST_TMP/out"
}

system_test
part "other programs"
check "it really is in the shell" with grep -q libmoat.so /proc/self/maps
check "a shell" alone bash -c 'echo one; echo two >&2; exit 3'
check "ovs-vsctl" alone ovs-vsctl --version
check "ovs-vsctl that fails" alone ovs-vsctl -t 2 --db="unix:$TEST_TMP/nothing" show
check "ovsdb-tool" alone ovsdb-tool schema-name /usr/share/openvswitch/vswitch.ovsschema
check "a DPDK program that is no switch" alone dpdk-testpmd --version
mkdir "$TEST_TMP/run"
MOAT_RUNDIR=$TEST_TMP/run MOAT_MAPPING=$TEST_TMP/run/mapping with bash -c :
check_equal "files that it made" "$(find "$TEST_TMP/run" -type f -o -type s | wc -l)" 0

part "switches that it does not fit"
cp "$(command -v sleep)" "$TEST_TMP/ovs-vswitchd"
cp "$(command -v sleep)" "$TEST_TMP/sleep"
check "a program called ovs-vswitchd without librte_vhost" refuses 'it does not link librte_vhost' "$MOAT_PRELOAD" "$TEST_TMP/ovs-vswitchd" 0.1
check "control: the same program under another name runs" with "$TEST_TMP/sleep" 0.1
check "control: and under that name without libmoat.so" "$TEST_TMP/ovs-vswitchd" 0.1
plain=/usr/lib/openvswitch-switch/ovs-vswitchd
check "Debian's ovs-vswitchd without DPDK" refuses 'it does not link librte_vhost' "$MOAT_PRELOAD" "$plain" --version
check "control: without libmoat.so it runs" "$plain" --version
cat >"$TEST_TMP/first.c" <<'END'
unsigned short rte_vhost_enqueue_burst(int vid, unsigned short queue, void **pkts, unsigned short n);
unsigned short rte_vhost_enqueue_burst(int vid, unsigned short queue, void **pkts, unsigned short n)
{
    (void)vid, (void)queue, (void)pkts;
    return n;
}
END
gcc -shared -fPIC -o "$TEST_TMP/first.so" "$TEST_TMP/first.c"
# shellcheck disable=SC2154
check "a switch whose calls another object takes first" refuses 'another object takes' \
    "$TEST_TMP/first.so $MOAT_PRELOAD" "$vswitchd" --version
# shellcheck disable=SC2154
check "control: the switch that it fits" with "$vswitchd" --version

part "a host"
host_start A
check "libmoat.so is in its switch" grep -q libmoat.so "/proc/$(testbed_pid A-switch)/maps"
check "its tools work" alone ovs-appctl -T 5 -t "$(host_dir A)/ovs-vswitchd.ctl" version
check "there is no engine yet: there is nothing to filter" not grep -q libmoat-engine.so "/proc/$(testbed_pid A-switch)/maps"
host_port_add A db "$TEST_TMP/vhost.sock" db-nic
check "the engine comes with the first port of a VM" grep -q libmoat-engine.so "/proc/$(testbed_pid A-switch)/maps"
check_soon 5 "and answers" ctl A slot list
check "the port is there, and belongs to nobody: unclaimed" says unclaimed ctl A slot list

part "a switch that it does not fit, on that host"
host_switch_stop A
host_spawn A refused env "LD_PRELOAD=$MOAT_PRELOAD" "$plain" "unix:$(host_dir A)/db.sock" \
    --unixctl="$TEST_TMP/refused.ctl" --pidfile="$TEST_TMP/refused.pid" --log-file="$TEST_TMP/refused.log"
check_soon 5 "it ends at once" testbed_dead A-refused
check "and says why" grep -q 'libmoat: refusing this switch' "$(host_dir A)/refused.out"
check "it has not even opened its control socket" [ ! -e "$TEST_TMP/refused.ctl" ]

part "an engine that cannot start"
# shellcheck disable=SC2034
HOST_ENV=("MOAT_ENGINE=$TEST_TMP/nothing.so")
host_switch_start A
host_port_del A db
host_port_add A db "$TEST_TMP/vhost.sock" db-nic
check "it says so" grep -qE 'libmoat: the engine .*nothing.so cannot start' "$(host_dir A)/ovs-vswitchd.log"
check "all VMs are cut off" grep -q 'libmoat: all VMs of this switch are cut off' "$(host_dir A)/ovs-vswitchd.log"
verdict
