# shellcheck shell=bash
# Guests: QEMU without KVM, 128 MB, one virtio NIC on a vhost-user socket. The worker in it
# (guest/agent.c) is driven over the second serial port: guest_cmd. For one thing at a time
# there is guest/traffic.c: guest_cmd NAME shell "traffic bulk ...".
#
# A guest NAME keeps what it is in $TESTBED_DIR/guests/NAME (host, mac, ports), and its
# running QEMU on host H in $TESTBED_DIR/guests/NAME/H: vhost.sock, qmp.sock, cmd.sock,
# console.log, qemu.out.
#
# Knobs: GUEST_QUEUES (pairs of queues that the NIC has, 1; a guest begins with as many as it has
# CPUs: see nic-queues of the worker), GUEST_CPUS (1; a queue for sending belongs to a CPU),
# GUEST_NIC (more properties of the device, ",mrg_rxbuf=off").
: "${testbed_lib:?source testbed.sh}"

guest_dir() { printf '%s/guests/%s\n' "$TESTBED_DIR" "$1"; }
guest_host() { cat "$(guest_dir "$1")/host"; }

# guest_run_dir NAME [HOST]: the dir of its QEMU on a host (the one it runs on).
guest_run_dir() { printf '%s/%s\n' "$(guest_dir "$1")" "${2:-$(guest_host "$1")}"; }

# guest_socket HOST NAME: the usual place of its vhost-user socket there.
guest_socket() { printf '%s/%s/vhost.sock\n' "$(guest_dir "$2")" "$1"; }

# guest_programs DIR [OPTION...]: builds the worker and `traffic` there.
guest_programs() {
    local dir=$1 src=$testbed_lib/guest
    shift
    gcc "$@" -O2 -Wall -Wextra -Werror -s -o "$dir/agent" "$src/agent.c"
    gcc "$@" -O2 -Wall -Wextra -Werror -s -o "$dir/traffic" "$src"/{traffic,bulk,ask,flood}.c
}

# guest_image: makes the initramfs, once for each version of its sources; prints its path.
guest_image() {
    local src=$testbed_lib/guest cache=$MOAT_CACHE/guest sum image tmp
    sum=$(cat "$src"/*.[ch] "$src/init" "$testbed_lib/guests.sh" "$MOAT_CACHE/kernel/version" | sha256sum | cut -c1-16)
    image=$cache/initramfs-$sum.gz
    if [ ! -e "$image" ]; then
        mkdir -p "$cache"
        tmp=$(mktemp -d "$cache/.new-XXXXXX")
        mkdir -p "$tmp/root/bin" "$tmp/root/modules"
        cp "$(command -v busybox)" "$tmp/root/bin/busybox"
        ln -s busybox "$tmp/root/bin/sh"
        cp "$MOAT_MODULES"/*.ko "$tmp/root/modules/"
        install -m 755 "$src/init" "$tmp/root/init"
        guest_programs "$tmp/root/bin" -static
        (cd "$tmp/root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/image"
        rm -f "$cache"/initramfs-*.gz
        mv "$tmp/image" "$image"
        rm -rf "$tmp"
    fi
    printf '%s\n' "$image"
}

# guest_start HOST NAME SOCKET MAC [--incoming]: starts QEMU; it waits there until the
# switch has connected to SOCKET, so add the port too. --incoming: it waits for a migration
# on migrate.sock in its dir.
guest_start() {
    local host=$1 name=$2 socket=$3 mac=$4 dir queues=${GUEST_QUEUES:-1} options=() image
    dir=$(guest_dir "$name")/$host
    image=$(guest_image)
    mkdir -p "$dir" "$(dirname "$socket")"
    rm -f "$dir"/*.sock "$socket"
    printf '%s\n' "$mac" >"$(guest_dir "$name")/mac"
    if [ "${5:-}" = --incoming ]; then
        options=(-incoming "unix:$dir/migrate.sock")
    else
        printf '%s\n' "$host" >"$(guest_dir "$name")/host"
    fi
    # vectors=0: QEMU 7.2 crashes with vhost-user and MSI-X under TCG.
    testbed_spawn "guest-$name-$host" "$dir/qemu.out" ip netns exec "$(host_ns "$host")" \
        qemu-system-x86_64 -name "$name" -nodefaults -no-user-config -display none -accel tcg -cpu max -smp "${GUEST_CPUS:-1}" \
        -m 128 -object memory-backend-memfd,id=m,size=128M,share=on -machine q35,memory-backend=m \
        -kernel "$MOAT_KERNEL" -initrd "$image" \
        -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off moat.name=$name" \
        -chardev "socket,id=c0,path=$socket,server=on,wait=off" \
        -netdev "vhost-user,id=n0,chardev=c0,queues=$queues" \
        -device "virtio-net-pci,netdev=n0,mac=$mac,romfile=,vectors=0,mq=$([ "$queues" -gt 1 ] && echo on || echo off)${GUEST_NIC:-}" \
        -chardev "file,id=con,path=$dir/console.log,append=on" -serial chardev:con \
        -chardev "socket,id=cmd,path=$dir/cmd.sock,server=on,wait=off" -serial chardev:cmd \
        -chardev "socket,id=mon,path=$dir/qmp.sock,server=on,wait=off" -mon chardev=mon,mode=control \
        "${options[@]}"
}

# guest_add HOST NAME MAC IFACE_ID [KEY=VALUE...]: port and guest together, at the usual
# socket; the port's external_ids are remembered for migrations.
guest_add() {
    local host=$1 name=$2 mac=$3 iface_id=$4
    shift 4
    guest_ids "$name" "$iface_id" "attached-mac=$mac" "$@"
    guest_start "$host" "$name" "$(guest_socket "$host" "$name")" "$mac"
    guest_await_socket "$host" "$name"
    guest_port_add "$host" "$name"
}

# guest_await_socket HOST NAME: until QEMU listens. The switch connects at once to a socket
# that is there, but tries only once a second if it is not.
guest_await_socket() {
    WAIT_LOG=$(guest_run_dir "$2" "$1")/qemu.out wait_for 10 "QEMU of guest $2" test -S "$(guest_socket "$1" "$2")"
}

# guest_ids NAME IFACE_ID [KEY=VALUE...]: remembers what identifies the guest's port.
guest_ids() {
    mkdir -p "$(guest_dir "$1")"
    printf '%s\n' "${@:2}" >"$(guest_dir "$1")/port"
}

# guest_port_add HOST NAME: adds the port of a guest with what guest_ids remembers.
guest_port_add() {
    local ids
    mapfile -t ids <"$(guest_dir "$2")/port"
    host_port_add "$1" "$2" "$(guest_socket "$1" "$2")" "${ids[@]}"
}

# guest_wait_boot NAME...: until the worker of each answers.
guest_wait_boot() {
    local name
    for name; do
        WAIT_LOG=$(guest_run_dir "$name")/console.log wait_for "${GUEST_BOOT_TIMEOUT:-90}" "guest $name to boot" guest_ready "$name"
    done
}
guest_ready() {
    testbed_alive "guest-$1-$(guest_host "$1")" && grep -q 'guest ready' "$(guest_run_dir "$1")/console.log" &&
        GUEST_TIMEOUT_MS=1000 guest_cmd "$1" hello
}

# guest_cmd NAME COMMAND...: has the worker do it and prints its answer. Fails with the
# reason on stderr if it says so or does not answer within GUEST_TIMEOUT_MS (30000).
guest_cmd() {
    local name=$1 id=$BASHPID.$RANDOM answer rc=0 last
    shift
    answer=$(tb_chat "$(guest_run_dir "$name")/cmd.sock" "${GUEST_TIMEOUT_MS:-30000}" "^$id \.(ok|err)" "$id $*") || rc=$?
    # Lines of an older, abandoned request may come first: ours end with our id.
    last=$(tail -n 1 <<<"$answer")
    answer=$(sed -n '$!p' <<<"$answer" | awk '/^[0-9.]+ \.(ok|err)/ {n = 0; next} {line[n++] = $0} END {for (i = 0; i < n; i++) print line[i]}')
    [ -z "$answer" ] || printf '%s\n' "$answer"
    [ "$rc" = 0 ] && [ "$last" = "$id .ok" ] && return 0
    if [ "$rc" != 0 ]; then
        tb_fail "guest $name: $*: no answer within ${GUEST_TIMEOUT_MS:-30000} ms"
    else
        tb_fail "guest $name: $*: ${last#"$id .err "}"
    fi
}

# guest_field NAME FIELD COMMAND...: one field of a JSON answer.
guest_field() {
    local name=$1 field=$2
    shift 2
    guest_cmd "$name" "$@" | jq -r ".$field"
}

# guest_qmp NAME COMMAND [JSON_ARGUMENTS]: the monitor of the running QEMU.
guest_qmp() {
    local name=$1
    shift
    qmp "$(guest_run_dir "$name")/qmp.sock" "$@"
}

# guest_mtu NAME MTU: of the guest's NIC and of its port. The bridge takes the least of its ports'.
guest_mtu() {
    local host
    host=$(guest_host "$1")
    host_vsctl "$host" set interface "vhu-$1" "mtu_request=$2"
    wait_for 10 "an MTU of $2 at vhu-$1" host_port_has_mtu "$host" "$1" "$2"
    guest_cmd "$1" shell "ip link set eth0 mtu $2"
}

# guest_stop NAME [HOST]: pulls the plug. The port stays.
guest_stop() { testbed_kill "guest-$1-${2:-$(guest_host "$1")}" KILL; }

# guest_reset NAME: presses the reset button.
guest_reset() {
    : >"$(guest_run_dir "$1")/console.log"
    guest_qmp "$1" system_reset >/dev/null
}
