/* SPDX-License-Identifier: Apache-2.0 */

/* So many a second.  A second's first one may be counted twice when two threads meet there: exact
 * enough. */

#include "slot.h"

#define RARPS_PER_SECOND 10
#define ANSWERS_PER_SECOND 100

static bool take_token(struct moat_tokens *t, uint32_t now_s, uint32_t per_second)
{
    if (__atomic_load_n(&t->second, __ATOMIC_RELAXED) != now_s) {
        __atomic_store_n(&t->second, now_s, __ATOMIC_RELAXED);
        __atomic_store_n(&t->taken, 0, __ATOMIC_RELAXED);
    }
    return __atomic_fetch_add(&t->taken, 1, __ATOMIC_RELAXED) < per_second;
}

bool moat_slot_may_log(struct moat_slot *s, uint32_t now_s, uint32_t per_second)
{
    return take_token(&s->logs, now_s, per_second);
}

bool moat_slot_may_announce(struct moat_slot *s, uint32_t now_s)
{
    return take_token(&s->rarps, now_s, RARPS_PER_SECOND);
}

bool moat_slot_may_open(struct moat_slot *s, uint32_t now_s, uint32_t per_second)
{
    return per_second == MOAT_DEFAULT_NEW || take_token(&s->opens, now_s, per_second);
}

bool moat_slot_may_answer(struct moat_slot *s, uint32_t now_s)
{
    return take_token(&s->answers, now_s, ANSWERS_PER_SECOND);
}

bool moat_slot_may_tell(struct moat_slot *s, enum moat_quota quota, uint32_t now_s)
{
    return __atomic_load_n(&s->told[quota], __ATOMIC_RELAXED) != now_s &&
           __atomic_exchange_n(&s->told[quota], now_s, __ATOMIC_RELAXED) != now_s;
}
