/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_MAPPING_H
#define MOAT_DP_MAPPING_H 1

/* The named hugepage mapping: everything that must outlive the switch.
 *
 *   header | slot records | rulesets, 2 per slot | sessions | their cold parts |
 *   IPv6 addresses | buckets
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
#ifndef MOAT_OTHER_LAYOUT
#define MOAT_MAPPING_LAYOUT 5
#else /* session.h */
#define MOAT_MAPPING_LAYOUT (5 + MOAT_OTHER_LAYOUT)
#endif
#define MOAT_MAPPING_COMPLETE 0x656e6f64u /* "done" */
#define MOAT_GENERATION_HALVES 16

struct moat_session;
struct moat_session_cold;
struct moat_bucket;

/* Session entries without a session (session_free.c). */
struct moat_free_list {
    uint32_t first, n;
};

struct moat_mapping_head {
    uint64_t magic;
    uint32_t layout;
    uint32_t complete; /* MOAT_MAPPING_COMPLETE, stored last, when the rest has been laid out */
    uint32_t n_slots, n_sessions, n_buckets;
    uint32_t n_sessions6; /* the last ones, of n_sessions: with room for IPv6 addresses */
    uint32_t ruleset_size;
    uint32_t session_size, cold_size, slot_size; /* sizes of the structures: part of the layout */
    uint64_t slots_off, rulesets_off, sessions_off, cold_off, addrs6_off, buckets_off, size;
    uint64_t seed[4]; /* salt of the session hash */
    char boot_id[40]; /* the clock below counts from this boot */
    uint64_t sum;     /* XXH3 of what is above, with `complete` zero: none of it changes */
    /* Upper halves of generations, which sessions name by their place (session.c).  The first one
     * is 0.  One that was written stays. */
    uint32_t generation_high[MOAT_GENERATION_HALVES];
    uint32_t n_generation_high; /* besides the first */
    /* Between two engines of one process: the index and the lists below are whole. */
    uint32_t index_whole;
    /* Without, with room for IPv6; rebuilt at recovery.  Packet threads write it: a line of its
     * own. */
    struct moat_free_list free[2] __attribute__((aligned(64)));
};

/* Anti-spoofing learn-once: the first address of a family that the VM has used.  Written by a
 * packet thread, once: who changes `state` from NOTHING to LEARNING writes the address. */
enum { MOAT_LEARNT_NOTHING = 0, MOAT_LEARNING = 1, MOAT_LEARNT = 2 };

struct moat_learnt {
    uint32_t state; /* atomic */
    uint8_t addr[16];
};

#define MOAT_SLOT_FIELDS 72 /* bytes */

/* One slot as it survives.  The fields down to `sum` change together, or not at all
 * (slot_rec.h); a new conf or ruleset is written beside the old one first. */
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
    uint64_t conf_sum; /* of the committed conf */
    uint64_t sum;      /* of what is above */
    uint64_t changing; /* `before` counts, not the above; by one store */
    uint8_t before[MOAT_SLOT_FIELDS];
    struct moat_learnt learnt[2]; /* IPv4, IPv6 */
    struct moat_slot_conf conf[2];
};

_Static_assert(offsetof(struct moat_slot_rec, changing) == MOAT_SLOT_FIELDS, "what a change keeps");

#define MOAT_NO_RULES UINT32_MAX

struct moat_mapping {
    struct moat_mapping_head *head;
    struct moat_slot_rec *slots;
    uint8_t *rulesets;
    struct moat_session *sessions;
    struct moat_session_cold *cold;
    uint8_t (*addrs6)[32];
    struct moat_bucket *buckets;
    int fd;
    bool fresh; /* made by this open: nothing to recover */
};

/* Opens or makes the mapping; n_sessions6 <= n_sessions of the sessions have room for IPv6
 * addresses.  path NULL: private memory.  seed NULL: random; a mapping
 * that is there keeps its own.  NULL with the reason in err. */
struct moat_mapping *moat_mapping_open(const char *path, uint32_t n_slots, uint32_t n_sessions,
                                       uint32_t n_sessions6, const uint64_t *seed, char *err,
                                       size_t err_size);

/* Another mapping of the file that is open as fd, of an engine in this process that made or
 * recovered it with the same numbers; both hold the file's lock.  NULL with the reason in err. */
struct moat_mapping *moat_mapping_share(int fd, const char *path, uint32_t n_slots,
                                        uint32_t n_sessions, uint32_t n_sessions6, char *err,
                                        size_t err_size);
void moat_mapping_close(struct moat_mapping *);

/* The file in which a mapping is made that will take the place of the one at path. */
void moat_mapping_next_name(const char *path, char *out, size_t size);

/* Buffer `which` (0 or 1) of a slot's rulesets; MOAT_RULESET_VNIC_MAX bytes. */
static inline uint8_t *moat_mapping_ruleset(const struct moat_mapping *m, uint32_t slot,
                                            uint32_t which)
{
    return m->rulesets + ((uint64_t)slot * 2 + which) * MOAT_RULESET_VNIC_MAX;
}

#endif /* datapath/mapping.h */
