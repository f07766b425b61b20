/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_RULESET_H
#define MOAT_RULESET_H 1

/* The compiled policy of one vNIC: a flat, relocatable, checksummed blob.
 *
 * Written by policy/emit, checked and used by datapath/ruleset and
 * datapath/classify, carried by control/.  Little-endian.  All offsets are in
 * bytes from the start of the blob and 8-byte aligned.
 *
 *   +--------------------+ 0
 *   | moat_ruleset_head  |   64 bytes; not covered by the digest
 *   +--------------------+ 64
 *   | moat_ruleset_body  |   section table; digest covers from here to the end
 *   +--------------------+
 *   | rules[]            |   first match wins
 *   | sets               |   n_sets bitmaps of set_words 64-bit words: classes
 *   | v4_start[], v4_class[]   a partition of the IPv4 address space
 *   | v6_start[], v6_class[]   a partition of the IPv6 address space
 *   | strings            |   rule names, NUL-terminated
 *   +--------------------+ size
 *
 * Addresses become classes (identities): interval i of a partition reaches from
 * start[i] to just before start[i + 1]; start[0] is zero; starts rise strictly.
 * A rule names a set of classes for the remote side and one for the local side.
 * A VM that joins a group or gets an address changes a few words here. */

#include <stddef.h>
#include <stdint.h>

#include "moat/flow.h"

#define MOAT_RULESET_MAGIC 0x534c524du /* "MRLS" */
#define MOAT_RULESET_VERSION 1
/* Of the format: what the check and the classifier take. */
#define MOAT_RULESET_MAX_SIZE (16u << 20)
/* Of one vNIC: what a slot of the mapping has room for, twice.  So it is also the limit of the
 * compiler, the control socket and a migration. */
#define MOAT_RULESET_VNIC_MAX (256u << 10)

#define MOAT_SET_ANY UINT32_MAX /* any address, of any family */
#define MOAT_PROTO_ANY UINT16_MAX

/* Bits of moat_rule.families. */
#define MOAT_RULE_IP4 0x01
#define MOAT_RULE_IP6 0x02
#define MOAT_RULE_ARP 0x04

/* Bits of moat_rule.dirs. */
#define MOAT_RULE_FROM_VM 0x01 /* 1 << MOAT_FROM_VM */
#define MOAT_RULE_TO_VM 0x02   /* 1 << MOAT_TO_VM */

/* Bits of moat_rule.flags. */
#define MOAT_RULE_F_LOG 0x01   /* write an event for a packet that it decides */
#define MOAT_RULE_F_LOOSE 0x02 /* TCP sessions may start mid-stream */

struct moat_rule {
    uint32_t id;       /* number in policy order, from 1; 0 is the default */
    uint8_t dirs;      /* MOAT_RULE_FROM_VM | MOAT_RULE_TO_VM */
    uint8_t families;  /* MOAT_RULE_IP4 | ... */
    uint8_t action;    /* enum moat_verdict */
    uint8_t flags;     /* MOAT_RULE_F_* */
    uint16_t proto;    /* IP protocol, or MOAT_PROTO_ANY */
    uint16_t tier;     /* of the policy, 0 first */
    uint16_t sport_lo, sport_hi; /* inclusive; ICMP: code */
    uint16_t dport_lo, dport_hi; /* inclusive; ICMP: type */
    uint32_t peer_set;  /* index of a set, or MOAT_SET_ANY */
    uint32_t local_set; /* likewise; for rules that name addresses */
    uint32_t skip_to;   /* MOAT_NEXT_TIER: index of the rule to go on with (> own index, <= n_rules) */
    uint32_t name;      /* offset in strings of its name, for people */
};

struct moat_ruleset_head {
    uint32_t magic;
    uint16_t version;
    uint16_t head_size;  /* sizeof(struct moat_ruleset_head) */
    uint32_t size;       /* of the whole blob */
    uint32_t checksum;   /* XXH32, seed 0, of the blob with this field zero */
    uint64_t generation; /* of the policy that it was compiled from */
    uint8_t digest[16];  /* XXH3-128 (canonical) of [head_size, size): what is enforced */
    uint8_t reserved[24];
};

struct moat_ruleset_body {
    uint32_t n_rules, rules_off;
    uint32_t n_classes;          /* class numbers are below this; at most 65536 */
    uint32_t n_sets, set_words;  /* set_words == (n_classes + 63) / 64 */
    uint32_t sets_off;
    uint32_t n_v4, v4_start_off; /* uint32_t[], host byte order */
    uint32_t v4_class_off;       /* uint16_t[] */
    uint32_t n_v6, v6_start_off; /* uint8_t[16][], network byte order */
    uint32_t v6_class_off;       /* uint16_t[] */
    uint32_t strings_off, strings_len;
    uint8_t default_action; /* MOAT_DROP or MOAT_ALLOW or MOAT_REJECT */
    uint8_t default_flags;  /* MOAT_RULE_F_* */
    uint8_t pad[2];
    uint32_t reserved[5];
};

_Static_assert(sizeof(struct moat_rule) == 36, "layout of the blob");
_Static_assert(sizeof(struct moat_ruleset_head) == 64, "layout of the blob");
_Static_assert(sizeof(struct moat_ruleset_body) == 80, "layout of the blob");

static inline const struct moat_ruleset_body *moat_ruleset_body(const struct moat_ruleset_head *h)
{
    return (const struct moat_ruleset_body *)((const uint8_t *)h + sizeof *h);
}

static inline const void *moat_ruleset_at(const struct moat_ruleset_head *h, uint32_t off)
{
    return (const uint8_t *)h + off;
}

#endif /* moat/ruleset.h */
