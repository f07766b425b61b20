/* SPDX-License-Identifier: Apache-2.0 */

/* What the agent does for a benchmark's VMs, without database and agent.
 *
 *   bench_enforce SOCKET apply POLICY-FILE NAME,VHOST-SOCKET,MAC,ADDRESS[,ADDRESS...]...
 *       claims a slot for each VM and publishes the ruleset compiled from the policy
 *   bench_enforce SOCKET counters NAME...
 *       one line each: NAME sessions N from-vm N to-vm N refused N */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl_client.h"

#include "guests.h"

static struct moat_ctl *ctl;

static void fail(const char *what)
{
    fprintf(stderr, "bench_enforce: %s: %s\n", what, ctl ? moat_ctl_error(ctl) : "bad argument");
    exit(1);
}

static char *read_file(const char *path)
{
    static char text[1 << 16];
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;

    if (!f || !n) {
        perror(path);
        exit(1);
    }
    fclose(f);
    return text;
}

static void apply(const char *policy_file, char **specs, int n)
{
    struct guests g = {0};
    const char *policy = read_file(policy_file);

    for (int i = 0; i < n; i++)
        if (guests_add(&g, specs[i])) {
            fprintf(stderr, "bench_enforce: %s: not a VM\n", specs[i]);
            exit(1);
        }
    for (unsigned i = 0; i < g.n; i++) {
        size_t len;
        uint8_t *blob = guests_ruleset(&g, i, policy, &len);

        if (!blob)
            exit(1);
        if (moat_ctl_claim(ctl, &g.conf[i]))
            fail("claim");
        if (moat_ctl_ruleset_put(ctl, g.conf[i].vnic, blob, len))
            fail("publish");
        free(blob);
    }
}

static void counters(const char *name)
{
    uint64_t c[MOAT_N_COUNTERS], refused = 0;
    struct moat_slot_info *slots;
    char vnic[MOAT_ID_MAX];
    size_t n;

    snprintf(vnic, sizeof vnic, "%s-nic", name);
    if (moat_ctl_counters(ctl, vnic, c) || moat_ctl_slots(ctl, &slots, &n))
        fail(vnic);
    for (unsigned i = MOAT_N_NAMED_COUNTERS; i < MOAT_N_COUNTERS; i++)
        refused += c[i];
    for (size_t i = 0; i < n; i++)
        if (!strcmp(slots[i].conf.vnic, vnic))
            printf("%s sessions %" PRIu32 " from-vm %" PRIu64 " to-vm %" PRIu64
                   " refused %" PRIu64 "\n",
                   name, slots[i].sessions, c[MOAT_C_FROM_VM_PKTS], c[MOAT_C_TO_VM_PKTS], refused);
    free(slots);
}

int main(int argc, char **argv)
{
    char why[256] = "";

    if (argc < 4) {
        fprintf(stderr, "usage: bench_enforce SOCKET apply POLICY VM... | counters NAME...\n");
        return 2;
    }
    if (moat_ctl_open(argv[1], MOAT_CTL_TIMEOUT_MS, &ctl, why, sizeof why)) {
        fprintf(stderr, "bench_enforce: %s: %s\n", argv[1], why);
        return 1;
    }
    if (!strcmp(argv[2], "apply")) {
        apply(argv[3], argv + 4, argc - 4);
    } else {
        for (int i = 3; i < argc; i++)
            counters(argv[i]);
    }
    moat_ctl_close(ctl);
    return 0;
}
