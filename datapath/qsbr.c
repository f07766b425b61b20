/* SPDX-License-Identifier: Apache-2.0 */

/* A reader publishes the epoch in which it entered; the epoch rises with each token.
 * A token has passed when no reader is inside since an epoch below it.  Readers that are
 * outside (epoch 0) hold nothing. */

#include "qsbr.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

void moat_qsbr_init(struct moat_qsbr *q)
{
    memset(q, 0, sizeof *q);
    q->epoch = 1;
}

struct moat_qsbr_reader *moat_qsbr_attach(struct moat_qsbr *q)
{
    for (unsigned i = 0; i < MOAT_QSBR_MAX_THREADS; i++) {
        uint32_t none = 0;

        if (__atomic_compare_exchange_n(&q->readers[i].used, &none, 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return &q->readers[i];
    }
    return NULL;
}

void moat_qsbr_detach(struct moat_qsbr_reader *r)
{
    if (r) {
        moat_qsbr_leave(r);
        __atomic_store_n(&r->used, 0, __ATOMIC_RELEASE);
    }
}

uint64_t moat_qsbr_token(struct moat_qsbr *q)
{
    return __atomic_add_fetch(&q->epoch, 1, __ATOMIC_SEQ_CST);
}

bool moat_qsbr_passed(struct moat_qsbr *q, uint64_t token)
{
    /* A full fence, in a form that the thread sanitizer understands. */
    __atomic_fetch_add(&q->epoch, 0, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < MOAT_QSBR_MAX_THREADS; i++) {
        uint64_t in = __atomic_load_n(&q->readers[i].epoch, __ATOMIC_SEQ_CST);

        if (in && in < token)
            return false;
    }
    return true;
}

void moat_qsbr_synchronize(struct moat_qsbr *q)
{
    uint64_t token = moat_qsbr_token(q);

    /* Bursts last microseconds, but a packet thread may be descheduled within one. */
    while (!moat_qsbr_passed(q, token))
        usleep(20);
}
