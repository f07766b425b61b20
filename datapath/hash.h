/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_HASH_H
#define MOAT_DP_HASH_H 1

/* A salted multiply-and-fold (the idea of wyhash).  Unlike CRC or Toeplitz it is not linear:
 * collisions cannot be computed without the salt. */

#include <stdint.h>

static inline uint64_t moat_hash_mum(uint64_t a, uint64_t b)
{
#ifdef __x86_64__
    /* gcc 12 sends both halves of a product of two words through memory. */
    uint64_t high;

    __asm__("mulq %2" : "+a"(a), "=d"(high) : "rm"(b) : "cc");
    return a ^ high;
#else
    __uint128_t r = (__uint128_t)a * b;

    return (uint64_t)r ^ (uint64_t)(r >> 64);
#endif
}

#endif /* datapath/hash.h */
