/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_ACL_PEER_H
#define TESTS_BENCH_ACL_PEER_H 1

/* The peer of the classifier: DPDK's librte_acl over the same rules. */

#include "tests/bench/rulesets.h"

struct acl_peer;

/* What rte_acl looks at, packed as it wants it. */
struct acl_key {
    uint8_t proto, pad[3];
    uint32_t src, dst;     /* network byte order */
    uint16_t sport, dport; /* network byte order */
};

/* Starts EAL (once a program), adds one of its rules for each pair of prefixes of each rule,
 * builds.  NULL: `why` says why not. */
struct acl_peer *acl_peer_create(const struct rules *, const char **why);
void acl_peer_destroy(struct acl_peer *);

uint32_t acl_peer_rules(const struct acl_peer *);
double acl_peer_build_s(const struct acl_peer *);

void acl_key_make(struct acl_key *, const struct moat_flow *);

/* out[i]: the index of the first rule that matches, plus one; 0: none. */
void acl_peer_classify(struct acl_peer *, const struct acl_key *, uint32_t n, uint32_t *out);

/* The vector methods that this machine has, by number; false: no such method, or not here. */
bool acl_peer_method(struct acl_peer *, unsigned method);
const char *acl_peer_method_name(unsigned method);
#define ACL_PEER_METHODS 4

#endif /* tests/bench/acl_peer.h */
