/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_RULESET_PRIVATE_H
#define MOAT_DP_RULESET_PRIVATE_H 1

/* The index over a blob: made by ruleset.c, read by classify.c, nobody else's.
 *
 * Rules are dealt into lists, one per direction, family and kind of protocol; a rule
 * stands in every list whose packets it may match.  In a list, two tables of bits say
 * which of its rules are worth a look:
 *
 *              rule  0 1 2 3 4 5 ...                    rule  0 1 2 3 4 5 ...
 *   port bucket 0    1 0 0 1 0 1        peer bucket 0         1 0 1 1 0 0
 *               1    1 1 0 0 0 1                    1         0 0 1 1 1 1
 *               :    (dport)                        :         (class modulo 64)
 *
 * The AND of one row of each is a superset of what matches; candidates are then compared
 * in full.  So both tables may be coarse, and their size is bounded whatever the policy.
 * That is best for few rules; a long list has trees in their place (forest.h).
 *
 * An address is looked up in a tree of blocks of 16 starts, a cache line each: the blocks of
 * the lowest level are the partition, a block above holds the first start of each block
 * below it but the first one. */

#include <stdbool.h>
#include <stdint.h>

#include "forest.h"
#include "ruleset.h"

/* Protocols that a policy is likely to have many rules for. */
enum { KIND_OTHER, KIND_TCP, KIND_UDP, KIND_SCTP, KIND_ICMP, KIND_ICMP6, N_KINDS };

#define N_FAMILY_LISTS (2 * N_KINDS + 1) /* IPv4, IPv6, ARP */
#define N_LISTS (2 * N_FAMILY_LISTS)     /* from and to the VM */
#define MAX_BUCKETS 64
#define BLOCK 16
#define MAX_LEVELS 7  /* 17^7 blocks are more than a ruleset can hold */
#define FOREST_MIN 96 /* rules of a list that is worth trees */

struct rule_list {
    const uint64_t *port_bits;  /* [n_ports][words] */
    const uint64_t *peer_bits;  /* [n_peers][words] */
    const uint16_t *port_start; /* bucket i: from here to just before the next; [0] is 0 */
    const uint32_t *rules;      /* their indices, rising */
    uint32_t n, words;          /* words == (n + 63) / 64 */
    uint32_t n_ports;           /* 1 to MAX_BUCKETS */
    uint32_t n_peers;           /* likewise; 1: no rule asks for the peer's class */
    bool locals;                /* some rule asks for the local class */
    struct forest_trees trees;  /* n_trees 0: the bit tables */
};

/* Starts with the top bit turned, so that they compare as signed numbers; behind the last one
 * the highest number. */
struct block_tree {
    const int32_t *level[MAX_LEVELS]; /* [0] is the lowest */
    uint32_t blocks[MAX_LEVELS];
    uint32_t n_levels, n;
};

struct moat_ruleset {
    const struct moat_ruleset_head *head;
    const struct moat_ruleset_body *body;
    const struct moat_rule *rules;
    const uint64_t *sets;
    const uint32_t *v4_start;
    const uint16_t *v4_class;
    const uint8_t (*v6_start)[16];
    const uint16_t *v6_class;
    uint64_t *hits; /* on lines of their own: the rest is never written */
    struct block_tree v4;
    uint16_t *rank; /* of a destination port among all edges of ranges; NULL: no list has trees */
    struct forest forest;
    struct moat_rule fallback; /* the default as a rule */
    struct rule_list lists[N_LISTS];
};

static inline unsigned rule_kind(uint8_t proto)
{
    static const uint8_t kinds[256] = {
        [1] = KIND_ICMP, [6] = KIND_TCP, [17] = KIND_UDP, [58] = KIND_ICMP6, [132] = KIND_SCTP,
    };

    return kinds[proto];
}

/* Last i with start[i] <= port; start[0] is 0. */
static inline uint32_t port_bucket(const uint16_t *start, uint32_t n, uint16_t port)
{
    uint32_t base = 0;

    while (n > 1) {
        uint32_t half = n / 2;

        base = start[base + half] <= port ? base + half : base;
        n -= half;
    }
    return base;
}

#endif /* datapath/ruleset_private.h */
