/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_RULESETS_H
#define TESTS_BENCH_RULESETS_H 1

/* Rulesets and traces for benchmarks and tests of the classifier, made from a seed.
 *
 *   sg    cloud security groups of one vNIC: groups are sets of identities or prefixes,
 *         each has rules for a few services
 *   acl, fw, ipc   five fields: nested prefixes on both sides, ports and protocols mixed
 *         after the shapes that Taylor and Turner describe for access lists, firewalls and
 *         IP chains (ClassBench, IEEE/ACM ToN 2007).  Made from that description alone: the
 *         mixes below are ours.
 *
 * IPv4, to the VM: a rule's peer is the source, its local side the destination. */

#include <stddef.h>
#include <stdint.h>

#include "moat/flow.h"
#include "moat/ruleset.h"

enum rules_kind { RULES_SG, RULES_ACL, RULES_FW, RULES_IPC, N_RULES_KINDS };

extern const char *const rules_kinds[N_RULES_KINDS];

struct rules_prefix {
    uint32_t addr; /* host byte order */
    uint8_t len;
};

struct rules_set {
    struct rules_prefix *v;
    uint32_t n;
};

struct rules_rule {
    uint32_t peer, local; /* of sets, or MOAT_SET_ANY */
    uint16_t proto;       /* or MOAT_PROTO_ANY */
    uint16_t sport_lo, sport_hi, dport_lo, dport_hi;
    uint8_t action; /* enum moat_verdict */
};

struct rules {
    enum rules_kind kind;
    struct rules_rule *rules;
    struct rules_set *sets;
    uint32_t n_rules, n_sets;
    uint64_t random;
};

/* No two rules are the same.  Aborts when out of memory, as do the others. */
struct rules *rules_create(enum rules_kind, uint32_t n_rules, uint64_t seed);
void rules_destroy(struct rules *);

/* Rule i of the blob is rule i of the set, its id is i + 1.  free() it. */
uint8_t *rules_blob(const struct rules *, size_t *len);

/* As a policy of VM "b" (sets of kind sg only).  free() it. */
char *rules_text(const struct rules *);

/* n flows: nine of ten are drawn from a rule (even ones uniformly, odd ones few rules often),
 * the others are random. */
void rules_trace(struct rules *, struct moat_flow *flows, uint32_t n);

#endif /* tests/bench/rulesets.h */
