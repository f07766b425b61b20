/* SPDX-License-Identifier: Apache-2.0 */

/* What a killed process leaves in shared memory is what it had stored, in the order of its
 * instructions: the fences below are there to keep the compiler's order.  Nothing here guards
 * against a loss of power: the memory does not outlive that. */

#include "slot_rec.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "mapping.h"

#define CHANGING 0x6368616e67696e67ull /* no single bit is far from it, or from none */

static uint64_t sum_of(const struct moat_slot_rec *r)
{
    return XXH3_64bits(r, offsetof(struct moat_slot_rec, sum));
}

static bool is_blank(const struct moat_slot_rec *r)
{
    static const uint8_t zeros[MOAT_SLOT_FIELDS];

    return !memcmp(r, zeros, sizeof zeros);
}

/* Who comes after a process that was killed finds all stores that it made: only the compiler could
 * change their order. */
static inline void in_order(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void moat_slot_rec_begin(struct moat_slot_rec *r)
{
    if (r->changing)
        return;
    memcpy(r->before, r, sizeof r->before);
    __atomic_store_n(&r->changing, CHANGING, __ATOMIC_SEQ_CST);
    in_order();
}

void moat_slot_rec_set_conf(struct moat_slot_rec *r, const struct moat_slot_conf *c)
{
    uint32_t other = !(r->conf_index & 1);

    r->conf[other] = *c;
    r->conf_sum = XXH3_64bits(&r->conf[other], sizeof *c);
    __atomic_store_n(&r->conf_index, other, __ATOMIC_RELEASE);
}

void moat_slot_rec_commit(struct moat_slot_rec *r)
{
    if (!r->changing)
        return;
    r->sum = sum_of(r);
    in_order();
    __atomic_store_n(&r->changing, 0, __ATOMIC_SEQ_CST);
}

bool moat_slot_rec_recover(struct moat_slot_rec *r, char *err, size_t err_size)
{
    if (r->changing == CHANGING) {
        memcpy(r, r->before, sizeof r->before);
        in_order();
        __atomic_store_n(&r->changing, 0, __ATOMIC_SEQ_CST);
    }
    if (r->changing) {
        snprintf(err, err_size, "its mark of a change under way is none");
        return false;
    }
    if (!is_blank(r) && r->sum != sum_of(r)) {
        snprintf(err, err_size, "the checksum of its state is wrong");
        return false;
    }
    if (r->used && r->conf_sum != XXH3_64bits(&r->conf[r->conf_index & 1], sizeof *r->conf)) {
        snprintf(err, err_size, "the checksum of its configuration is wrong");
        return false;
    }
    return true;
}

void moat_slot_rec_clear(struct moat_slot_rec *r)
{
    uint32_t incarnation = (r->incarnation + 1) & 0xfffff;

    r->changing = 0;
    moat_slot_rec_begin(r);
    memset(r, 0, MOAT_SLOT_FIELDS);
    r->incarnation = incarnation;
    moat_slot_rec_commit(r);
}
