/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as a capture file, pcap or pcapng, replayed offline through the filter core for two
 * vNICs: the reader (libpcap and ours) and the replay survive, and what they say is sound. */

#include <sys/mman.h>
#include <unistd.h>

#include "control/replay/replay.h"
#include "tests/lib/rig.h"

#include "tests/fuzz/fuzz.h"

static struct moat_policy *policy;
static struct rig rig; /* for its inventory */

struct run {
    struct moat_replay *replay;
    uint64_t packets, last;
};

static void prepare(void)
{
    static const char text[] = "policy \"p\" version 1\n"
                               "tier t { allow log from vms to any service tcp, udp, icmp\n"
                               "  reject from any to vms }\ndefault drop\n";

    rig_create(&rig, NULL);
    policy = moat_policy_parse(text, strlen(text), "p", NULL);
    HOLDS(policy);
}

static bool packet(void *run_, const struct moat_captured *c)
{
    struct run *run = run_;
    struct moat_replayed r;

    HOLDS(c->len <= c->total && c->number > run->last);
    run->last = c->number;
    moat_replay_packet(run->replay, c, &r);
    if (r.judged) {
        HOLDS(r.answer < MOAT_N_ANSWERS && r.traced.reason < MOAT_N_REASONS);
        HOLDS(r.traced.verdict == MOAT_ALLOW || r.traced.reason);
    }
    return ++run->packets < 10000;
}

static int write_file(const uint8_t *input, size_t size, char path[32])
{
    int fd = memfd_create("capture", MFD_CLOEXEC);

    HOLDS(fd >= 0 && write(fd, input, size) == (ssize_t)size);
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct moat_replay_vnic vnics[2] = {
        {.vnic = 0, .id = "vnic-a", .vm = "a", .network = "net", .has_mac = true},
        {.vnic = 1, .id = "vnic-b", .vm = "b", .network = "net"}};
    struct moat_addr addrs[2] = {{.family = 4, .plen = 32}, {.family = 4, .plen = 32}};
    struct moat_replay_conf conf = {.vnics = vnics, .n_vnics = 2, .pickup_s = size & 1 ? 60 : 0};
    struct run run = {0};
    char err[256] = "", path[32];
    int fd, rc;

    if (!policy)
        prepare();
    for (unsigned i = 0; i < 2; i++) {
        memcpy(vnics[i].mac, rig_mac[i], 6);
        memcpy(addrs[i].addr, rig_ip4[i], 4);
        vnics[i].addrs = &addrs[i];
        vnics[i].n_addrs = 1;
    }
    conf.policy = policy;
    conf.inventory = rig.inv;
    fd = write_file(input, size, path);
    run.replay = moat_replay_create(&conf, err, sizeof err);
    HOLDS(run.replay);
    rc = moat_capture_read(path, packet, &run, err, sizeof err);
    HOLDS(!rc || (rc < 0 && err[0]));
    moat_replay_destroy(run.replay);
    close(fd);
    return 0;
}
