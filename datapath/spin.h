/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SPIN_H
#define MOAT_DP_SPIN_H 1

/* A spin lock of one byte, for sections of a few dozen instructions on packet threads.  Zero is
 * free. */

#include <stdbool.h>
#include <stdint.h>

static inline void moat_spin_lock(uint8_t *l)
{
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(l, __ATOMIC_RELAXED))
            __builtin_ia32_pause();
}

static inline bool moat_spin_try(uint8_t *l)
{
    return !__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE);
}

static inline void moat_spin_unlock(uint8_t *l)
{
    __atomic_store_n(l, 0, __ATOMIC_RELEASE);
}

#endif /* datapath/spin.h */
