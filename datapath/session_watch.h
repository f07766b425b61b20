/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SESSION_WATCH_H
#define MOAT_DP_SESSION_WATCH_H 1

/* Which sessions have changed, for who copies a table that is in use.  A bit an entry, and one for
 * each 64 words of these, so that what is little is found soon.
 *
 *   who changes a session              who copies
 *   changes it                         takes (clears) the bit
 *   sets the bit                       reads the session
 *
 * so a change that was not read has its bit set again.  Threads: any number set, one takes. */

#include <stdbool.h>
#include <stdint.h>

struct moat_session_watch {
    uint32_t n_words;
    uint64_t *words;   /* atomic */
    uint64_t *summary; /* atomic: bit i: there may be something in words 64 i to 64 i + 63 */
};

/* For a table of n entries.  NULL: no memory. */
struct moat_session_watch *moat_session_watch_create(uint32_t n);
void moat_session_watch_destroy(struct moat_session_watch *); /* NULL is harmless */

void moat_session_watch_set(struct moat_session_watch *, uint32_t index);

/* Clears and returns the next one from `from` on; UINT32_MAX: none. */
uint32_t moat_session_watch_take(struct moat_session_watch *, uint32_t from);

#endif /* datapath/session_watch.h */
