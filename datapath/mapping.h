/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_MAPPING_H
#define MOAT_DP_MAPPING_H 1

/* The named hugepage mapping: everything that must outlive the switch.
 *
 *   header | slot records | rulesets, 2 per slot | sessions | buckets
 *
 * Sessions, slots and rulesets are found again after a crash or restart.  The buckets
 * live here only for their hugepages: the index is rebuilt from the sessions, so a torn
 * one cannot matter.  No pointers, locks, port numbers or wall-clock times inside.
 * The file is locked (flock) as long as it is mapped, mode 0600, all its pages are
 * allocated at once.  A mapping of another layout or size is refused, never guessed at. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"
#include "moat/ruleset.h"

#define MOAT_MAPPING_MAGIC 0x50414d54414f4dull /* "MOATMAP" */
#define MOAT_MAPPING_LAYOUT 2

struct moat_session;
struct moat_bucket;

struct moat_mapping_head {
    uint64_t magic;
    uint32_t layout;
    uint32_t complete; /* stored last, when the rest has been laid out */
    uint32_t n_slots, n_sessions, n_buckets;
    uint32_t ruleset_size;
    uint32_t session_size, slot_size; /* sizes of the structures: part of the layout */
    uint64_t slots_off, rulesets_off, sessions_off, buckets_off, size;
    uint64_t seed[4]; /* salt of the session hash */
    char boot_id[40]; /* the clock below counts from this boot */
};

/* Anti-spoofing learn-once: the first address of a family that the VM has used.  Written by a
 * packet thread, once: who changes `state` from NOTHING to LEARNING writes the address. */
enum { MOAT_LEARNT_NOTHING = 0, MOAT_LEARNING = 1, MOAT_LEARNT = 2 };

struct moat_learnt {
    uint32_t state; /* atomic */
    uint8_t addr[16];
};

/* One slot as it survives.  A change of conf is written beside the old one and
 * committed by one store; so is a ruleset. */
struct moat_slot_rec {
    uint32_t used;
    uint32_t incarnation; /* rises at each release and flush: old sessions are then void */
    uint32_t state;       /* enum moat_slot_state */
    uint32_t serial;      /* of the committed ruleset; rises when the digest changes */
    uint64_t epoch;
    uint32_t pickup_until; /* engine clock, seconds */
    uint32_t conf_index;   /* committed: conf[0] or conf[1] */
    uint32_t rules_index;  /* committed: 0 or 1; MOAT_NO_RULES: none */
    uint32_t rules_len[2];
    uint32_t unplugged;    /* its port went away in this switch's life: blocked until claimed */
    uint32_t enroll_until; /* ENROLLING: engine clock, seconds; 0: not running yet */
    uint32_t pad;
    struct moat_learnt learnt[2]; /* IPv4, IPv6 */
    struct moat_slot_conf conf[2];
};

#define MOAT_NO_RULES UINT32_MAX

struct moat_mapping {
    struct moat_mapping_head *head;
    struct moat_slot_rec *slots;
    uint8_t *rulesets;
    struct moat_session *sessions;
    struct moat_bucket *buckets;
    int fd;
    bool fresh; /* made by this open: nothing to recover */
};

/* Opens or makes the mapping.  path NULL: private memory.  seed NULL: random; a mapping
 * that is there keeps its own.  NULL with the reason in err. */
struct moat_mapping *moat_mapping_open(const char *path, uint32_t n_slots, uint32_t n_sessions,
                                       const uint64_t *seed, char *err, size_t err_size);
void moat_mapping_close(struct moat_mapping *);

/* Buffer `which` (0 or 1) of a slot's rulesets; MOAT_RULESET_VNIC_MAX bytes. */
static inline uint8_t *moat_mapping_ruleset(const struct moat_mapping *m, uint32_t slot,
                                            uint32_t which)
{
    return m->rulesets + ((uint64_t)slot * 2 + which) * MOAT_RULESET_VNIC_MAX;
}

#endif /* datapath/mapping.h */
