/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_RANGE_H
#define MOAT_POLICY_RANGE_H 1

/* Sets of addresses as sorted ranges: what groups become on the way to classes. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned __int128 moat_u128;

struct moat_range {
    moat_u128 lo, hi; /* both included */
};

enum { RANGE_V4, RANGE_V6, N_RANGE_FAMILIES };

/* Normal form: sorted, disjoint, not even adjacent. */
struct moat_rangeset {
    struct {
        struct moat_range *v;
        uint32_t n, cap;
    } f[N_RANGE_FAMILIES];
    bool failed; /* for want of memory */
};

moat_u128 moat_range_max(int family);
moat_u128 moat_range_addr(int family, const uint8_t addr[16]);
/* enum moat_family to RANGE_V4 or RANGE_V6 */
int moat_range_family(unsigned family);

/* Appends; the set is not in normal form until moat_rangeset_normalise(). */
void moat_rangeset_add(struct moat_rangeset *, int family, moat_u128 lo, moat_u128 hi);
void moat_rangeset_add_all(struct moat_rangeset *); /* every address */
void moat_rangeset_append(struct moat_rangeset *, const struct moat_rangeset *);
void moat_rangeset_normalise(struct moat_rangeset *);

/* a = a without b; both in normal form. */
void moat_rangeset_subtract(struct moat_rangeset *a, const struct moat_rangeset *b);

/* Of sets in normal form. */
bool moat_rangeset_equal(const struct moat_rangeset *, const struct moat_rangeset *);
bool moat_rangeset_is_full(const struct moat_rangeset *, int family);

void moat_rangeset_destroy(struct moat_rangeset *);

#endif /* policy/range.h */
