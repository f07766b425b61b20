/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_STORES_H
#define MOAT_TESTS_STORES_H 1

/* Every store that a piece of code makes to a range of memory, one by one: what memory looks like
 * at each instant at which the process could have been killed.
 *
 * The range is made read-only.  A store faults; it is let through alone (trap flag), what it
 * changed is noted, and the range is closed again.  x86-64, one thread. */

#include <stddef.h>
#include <stdint.h>

#define STORE_MAX 192

struct store {
    size_t off; /* from the start of the range */
    uint32_t len;
    uint8_t bytes[STORE_MAX];
};

/* base and size in whole pages. */
void stores_begin(void *base, size_t size);

/* Number of stores that changed anything; *log (valid until the next stores_begin) has them in
 * order. */
size_t stores_end(const struct store **log);

#endif /* tests/lib/stores.h */
