/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_GEN_POLICY_H
#define MOAT_TESTS_GEN_POLICY_H 1

/* Random inventories, policies and packets that are likely to meet.
 *
 * A seed gives a case; the same seed gives the same case and the same packets on
 * every machine.  Networks share subnets and addresses, groups and addresses touch
 * and overlap, and packets favour the first and last address and port of whatever
 * the case speaks of.  Use:
 *
 *     struct moat_gen g;
 *     moat_gen_case(seed, &g);
 *     for each vNIC below moat_inventory_n_vnics(g.inv)
 *         compile g.policy (NULL: quarantine) for it
 *         moat_gen_flow(&g, vnic, &flow), then judge it in two ways
 *     moat_gen_destroy(&g);
 */

#include <stdint.h>

#include "policy/policy.h"

#define MOAT_GEN_POOL 512

struct moat_gen {
    uint64_t seed, state;
    struct moat_inventory *inv;
    char *text;                 /* of the policy; NULL: no policy */
    struct moat_policy *policy; /* NULL: no policy, or the text does not parse (a bug) */
    bool quarantined[8];        /* by VM: an operator says so, whatever the policy says */

    /* What packets are made of. */
    struct moat_addr addrs[MOAT_GEN_POOL];
    unsigned n_addrs;
    uint16_t ports[MOAT_GEN_POOL];
    unsigned n_ports;
    struct {
        struct moat_addr v[8];
        unsigned n;
    } own[16]; /* by vNIC */
};

void moat_gen_case(uint64_t seed, struct moat_gen *);
void moat_gen_destroy(struct moat_gen *);
void moat_gen_flow(struct moat_gen *, unsigned vnic, struct moat_flow *);

/* The generator beneath: splitmix64.  Below n. */
uint64_t moat_gen_next(uint64_t *state);
unsigned moat_gen_below(uint64_t *state, unsigned n);

/* $MOAT_SEED, else `otherwise`; said on stderr. */
uint64_t moat_gen_seed(uint64_t otherwise);

#endif /* tests/lib/gen_policy.h */
