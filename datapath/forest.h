/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_FOREST_H
#define MOAT_DP_FOREST_H 1

/* Decision trees over a long list of rules: what ruleset.c makes and classify.c walks.
 *
 * A rule is a box in four dimensions of 16 bits: the peer's class, the local class, the rank
 * of the destination port among the edges of all rules' ranges, the source port.  Rules are
 * dealt into at most four trees, by whether their peer and their local side are narrow: a
 * wide one in a tree that cuts there would be copied into every branch.
 *
 *   cut   | dim | base | shift | last |   branch min(max(x[dim] - base, 0) >> shift, last)
 *     |--- cut ...
 *     '--- leaf | box | box | box | .. | rule | rule | rule | .. |   in rising order
 *
 * A leaf is a cut, too, whose only branch is itself: packets of a burst step down together, and
 * those that have arrived stay where they are.
 *
 * A box is compared at once: lows and complements of highs, none above the packet's.  Sets of
 * classes that are no single range within a leaf's reach are compared again by the bitmap
 * (FOREST_VERIFY).
 *
 * Work and memory are bounded whatever the rules: a list whose trees would cost more gets none
 * and is matched by its bit tables. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ruleset.h"

enum { DIM_PEER, DIM_LOCAL, DIM_DPORT, DIM_SPORT, N_DIMS };

#define FOREST_TREES 4
#define FOREST_VERIFY 0x80000000u /* in a leaf's rule number: compare all of it */
#define FOREST_LEAF_MAX 65535

struct forest_slot {
    uint32_t at;         /* cut: index of the first branch; leaf: its own, or its equal's */
    uint32_t first;      /* no rule below has a lower index */
    uint16_t base, last; /* leaf: place of its boxes, 16 bytes each: low half, high half */
    uint8_t dim;         /* FOREST_DIM times the dimension: a shift */
    uint8_t shift;
    uint16_t n; /* leaf: boxes */
};

#define FOREST_DIM 16
#define FOREST_LEAF_SHIFT 31 /* nothing is left of 16 bits: branch 0, and that is the leaf */

_Static_assert(sizeof(struct forest_slot) == 16, "four to a cache line");

struct forest_box {
    uint16_t lo[N_DIMS], not_hi[N_DIMS];
};

/* Immutable once made. */
struct forest {
    struct forest_slot *slots;
    struct forest_box *leaves;
    uint32_t n_slots, cap_slots, n_leaves, cap_leaves;
};

static inline bool forest_is_leaf(const struct forest_slot *s)
{
    return s->shift == FOREST_LEAF_SHIFT;
}

static inline const struct forest_box *forest_boxes(const struct forest *f,
                                                    const struct forest_slot *leaf)
{
    return &f->leaves[leaf->base | (uint32_t)leaf->last << 16];
}

/* The trees of one list; n_trees 0: it has none. */
struct forest_trees {
    struct forest_slot roots[FOREST_TREES]; /* in rising order of `first` */
    uint32_t n_trees;
    uint32_t depth; /* cuts above the deepest leaf */
};

/* What all lists of a ruleset share while their trees are made. */
struct forest_maker;

/* rank[p]: of destination port p.  NULL: no memory.  The blob has been checked. */
struct forest_maker *forest_maker_create(const struct moat_ruleset_head *, const uint16_t *rank);
void forest_maker_destroy(struct forest_maker *);

/* Makes the trees of a list: n indices of rules, rising.  `exact`: the list settles the protocol.
 * out->n_trees 0: not worth it, or for want of memory; the forest is then as it was. */
void forest_plant(struct forest_maker *, struct forest *, const uint32_t *rules, uint32_t n,
                  bool exact, struct forest_trees *out);

void forest_trim(struct forest *); /* gives back what is not used */
void forest_clear(struct forest *);
size_t forest_size(const struct forest *); /* bytes */

#endif /* datapath/forest.h */
