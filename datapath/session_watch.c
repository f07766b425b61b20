/* SPDX-License-Identifier: Apache-2.0 */

/* The summary is set after the word and cleared before the words are looked at: a word that is
 * missed has its summary set again. */

#include "session_watch.h"

#include <stdlib.h>

#define WORDS_OF(N) (((uint64_t)(N) + 63) / 64)

struct moat_session_watch *moat_session_watch_create(uint32_t n)
{
    struct moat_session_watch *w = calloc(1, sizeof *w);

    if (!w)
        return NULL;
    w->n_words = (uint32_t)WORDS_OF(n);
    w->words = calloc(w->n_words ? w->n_words : 1, sizeof *w->words);
    w->summary = calloc(WORDS_OF(w->n_words) / 64 + 1, sizeof *w->summary);
    if (!w->words || !w->summary) {
        moat_session_watch_destroy(w);
        return NULL;
    }
    return w;
}

void moat_session_watch_destroy(struct moat_session_watch *w)
{
    if (w) {
        free(w->words);
        free(w->summary);
        free(w);
    }
}

static void set_summary(struct moat_session_watch *w, uint32_t block)
{
    uint64_t mask = UINT64_C(1) << (block & 63);

    if (!(__atomic_load_n(&w->summary[block / 64], __ATOMIC_SEQ_CST) & mask))
        __atomic_fetch_or(&w->summary[block / 64], mask, __ATOMIC_SEQ_CST);
}

/* The write to the word is also the fence between the change and all that follows: a look first,
 * whether the bit is set already, could come before the change is to be seen. */
void moat_session_watch_set(struct moat_session_watch *w, uint32_t index)
{
    if (index / 64 >= w->n_words)
        return;
    __atomic_fetch_or(&w->words[index / 64], UINT64_C(1) << (index & 63), __ATOMIC_SEQ_CST);
    set_summary(w, index / 64 / 64);
}

/* The first set bit at or behind `from`, within its word; 64: none. */
static unsigned first_in(uint64_t word, uint32_t from)
{
    word &= ~UINT64_C(0) << (from & 63);
    return word ? (unsigned)__builtin_ctzll(word) : 64;
}

static uint32_t take_from(struct moat_session_watch *w, uint32_t word, uint32_t from)
{
    unsigned bit = first_in(__atomic_load_n(&w->words[word], __ATOMIC_SEQ_CST), from);

    if (bit == 64)
        return UINT32_MAX;
    __atomic_fetch_and(&w->words[word], ~(UINT64_C(1) << bit), __ATOMIC_SEQ_CST);
    return word * 64 + bit;
}

uint32_t moat_session_watch_take(struct moat_session_watch *w, uint32_t from)
{
    uint32_t word = from / 64;

    while (word < w->n_words) {
        uint32_t block = word / 64, end = (block + 1) * 64;
        uint64_t mask = UINT64_C(1) << (block & 63);
        bool whole = word % 64 == 0 && from <= word * 64;

        if (!(__atomic_load_n(&w->summary[block / 64], __ATOMIC_SEQ_CST) & mask)) {
            word = end;
            continue;
        }
        if (whole)
            __atomic_fetch_and(&w->summary[block / 64], ~mask, __ATOMIC_SEQ_CST);
        for (; word < end && word < w->n_words; word++) {
            uint32_t found = take_from(w, word, word == from / 64 ? from : 0);

            if (found == UINT32_MAX)
                continue;
            /* There may be more of them here. */
            set_summary(w, block);
            return found;
        }
    }
    return UINT32_MAX;
}
