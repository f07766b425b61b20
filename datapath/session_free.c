/* SPDX-License-Identifier: Apache-2.0 */

/* Entries without a session.
 *
 * A list costs no memory: a dead entry's own line holds the indexes of others (a chunk), and the
 * index of the next one that does.  So a thread that takes a chunk touches one line for all of
 * it, and the head of a list is one number, in the mapping.  Its first word is the key's tag,
 * which stays zero: nobody takes it for a session.
 *
 * A thread takes many at a time (moat_session_table.stock): entries that lie together go to one
 * thread, for threads that write neighbouring lines take them from each other.
 *
 * There are two lists: entries with room for IPv6 addresses, and those without.  IPv4 sessions take
 * the former when the latter are used up.
 *
 * Removed entries wait, in an array of the control thread, until no reader can hold them. */

#include <string.h>

#include "engine.h"
#include "qsbr.h"
#include "session_private.h"
#include "spin.h"

#define CHUNK 12

struct chunk {
    uint32_t tag; /* 0 */
    uint32_t next, n;
    uint32_t index[CHUNK];
    uint32_t pad;
};

_Static_assert(sizeof(struct chunk) == sizeof(struct moat_session), "it lies in one");
_Static_assert(MOAT_EXPECT_MAX + MOAT_SESSION_STOCK + CHUNK <= MOAT_SESSION_CACHE, "all fit");

static struct chunk *chunk_at(struct moat_session_table *t, uint32_t index)
{
    return (struct chunk *)(void *)&t->sessions[index];
}

/* Takes chunks of list `six` until there are `want`, or all that there are, and at most CHUNK more:
 * how many.  At once, for the lock and the list are lines that all threads write. */
static uint32_t take_chunks(struct moat_session_table *t, bool six, uint32_t *out, uint32_t want)
{
    struct moat_free_list *f = &t->head->free[six];
    uint32_t n = 0;

    moat_spin_lock(&t->free_lock);
    while (n < want && f->n > n) {
        const struct chunk *c = chunk_at(t, f->first);
        uint32_t more = c->n < CHUNK ? c->n : CHUNK;

        memcpy(out + n, c->index, more * sizeof *out);
        out[n + more] = f->first;
        n += more + 1;
        f->first = c->next;
    }
    if (n)
        __atomic_store_n(&f->n, f->n - n, __ATOMIC_RELAXED);
    if (f->n)
        __builtin_prefetch(chunk_at(t, f->first));
    moat_spin_unlock(&t->free_lock);
    return n;
}

/* All of one list, at most a chunk's. */
static void give_chunk(struct moat_session_table *t, bool six, const uint32_t *indexes, uint32_t n)
{
    struct moat_free_list *f = &t->head->free[six];
    struct chunk *c = chunk_at(t, indexes[n - 1]);

    c->n = n - 1;
    memcpy(c->index, indexes, (n - 1) * sizeof *indexes);
    moat_spin_lock(&t->free_lock);
    c->next = f->first;
    f->first = indexes[n - 1];
    __atomic_store_n(&f->n, f->n + n, __ATOMIC_RELAXED);
    moat_spin_unlock(&t->free_lock);
}

void moat_session_give(struct moat_session_table *t, const uint32_t *indexes, uint32_t n)
{
    uint32_t some[2][CHUNK + 1], k[2] = {0, 0};

    for (uint32_t i = 0; i < n; i++) {
        bool six = indexes[i] >= t->first6;

        some[six][k[six]++] = indexes[i];
        if (k[six] == CHUNK + 1) {
            give_chunk(t, six, some[six], k[six]);
            k[six] = 0;
        }
    }
    for (int six = 0; six < 2; six++)
        if (k[six])
            give_chunk(t, six, some[six], k[six]);
}

/* The thread shall have n of list `six` at hand, or all that there are; their lines are on the
 * way, the next one's first. */
static void stock(struct moat_session_table *t, struct moat_session_cache *c, bool six, uint32_t n)
{
    if (c->n < n)
        c->n += take_chunks(t, six, c->index + c->n, t->stock > n - c->n ? t->stock : n - c->n);
    for (uint32_t i = c->n; i > 0 && n > 0; i--, n--) {
        uint32_t index = c->index[i - 1];

        __builtin_prefetch(&t->sessions[index], 1);
        __builtin_prefetch(&t->cold[index], 1);
        if (six)
            __builtin_prefetch(t->addrs6[index - t->first6], 1);
    }
}

void moat_session_expect(struct moat_session_table *t, struct moat_thread *thread, unsigned n4,
                         unsigned n6)
{
    if (n4)
        stock(t, &thread->free[0], false, n4);
    if (n6)
        stock(t, &thread->free[1], true, n6);
}

uint32_t moat_session_take(struct moat_session_table *t, struct moat_thread *thread, uint8_t family)
{
    for (int six = family == MOAT_FAM_IP6; six < 2; six++) {
        struct moat_session_cache *c = &thread->free[six];

        if (!c->n)
            c->n = take_chunks(t, six, c->index, 1);
        if (c->n)
            return c->index[--c->n];
    }
    return MOAT_NO_SESSION;
}

void moat_session_untake(struct moat_session_table *t, struct moat_thread *thread, uint32_t index)
{
    struct moat_session_cache *c = &thread->free[index >= t->first6];

    c->index[c->n++] = index;
}

void moat_session_thread_flush(struct moat_session_table *t, struct moat_thread *thread)
{
    for (int six = 0; six < 2; six++) {
        moat_session_give(t, thread->free[six].index, thread->free[six].n);
        thread->free[six].n = 0;
    }
}

void moat_session_reclaim(struct moat_session_table *t, struct moat_qsbr *q)
{
    if (t->n_old && moat_qsbr_passed(q, t->token)) {
        moat_session_give(t, t->limbo, t->n_old);
        memmove(t->limbo, t->limbo + t->n_old, (t->n_limbo - t->n_old) * sizeof *t->limbo);
        t->n_limbo -= t->n_old;
        t->n_old = 0;
    }
    if (!t->n_old && t->n_limbo) {
        t->n_old = t->n_limbo;
        t->token = moat_qsbr_token(q);
    }
}

uint32_t moat_session_table_used(const struct moat_session_table *t)
{
    return t->n_sessions - __atomic_load_n(&t->head->free[0].n, __ATOMIC_RELAXED) -
           __atomic_load_n(&t->head->free[1].n, __ATOMIC_RELAXED);
}

void moat_session_table_leave(struct moat_session_table *t)
{
    moat_session_give(t, t->limbo, t->n_limbo);
    t->n_limbo = t->n_old = 0;
    __atomic_store_n(&t->head->index_whole, 1, __ATOMIC_RELEASE);
}

bool moat_session_table_resume(struct moat_session_table *t)
{
    return __atomic_exchange_n(&t->head->index_whole, 0, __ATOMIC_ACQ_REL) == 1;
}
