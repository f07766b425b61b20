/* SPDX-License-Identifier: Apache-2.0 */

/* So many at a time, and so many a second. */

#include "slot.h"

#define RARPS_PER_SECOND 10
#define ANSWERS_PER_SECOND 100

void moat_slot_give_back(uint32_t *count, uint32_t n)
{
    uint32_t now = __atomic_load_n(count, __ATOMIC_RELAXED), left;

    do
        left = now > n ? now - n : 0; /* the slot may have begun to count anew meanwhile */
    while (n && !__atomic_compare_exchange_n(count, &now, left, true, __ATOMIC_RELAXED,
                                             __ATOMIC_RELAXED));
}

uint32_t moat_slot_reserve(uint32_t *count, uint32_t n, uint32_t max)
{
    uint32_t now = __atomic_load_n(count, __ATOMIC_RELAXED), got;

    do {
        if (now >= max)
            return 0;
        got = max - now < n ? max - now : n;
    } while (!__atomic_compare_exchange_n(count, &now, now + got, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return got;
}

/* A second's first one may be counted twice when two threads meet there: exact enough. */
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
