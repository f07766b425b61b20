/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SLOT_PRIVATE_H
#define MOAT_DP_SLOT_PRIVATE_H 1

/* Slots inside: slot.c is their life, slot_info.c what others see of them, handover.c how they go
 * to another engine.  Nobody else.  All under the engine's lock. */

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "mapping.h"
#include "slot.h"

static inline struct moat_slot_rec *rec_of(struct moat_engine *e, const struct moat_slot *s)
{
    return &e->map->slots[s->index];
}

static inline const struct moat_slot_conf *conf_of(const struct moat_slot_rec *r)
{
    return &r->conf[r->conf_index & 1];
}

static inline uint64_t now_us(const struct moat_engine *e)
{
    return moat_engine_now_ms(e) * 1000;
}

/* slot.c: the slot of a vNIC with the lock held, or NULL with err set and the lock released. */
struct moat_slot *moat_slot_lock(struct moat_engine *, const char *vnic, char *err,
                                 size_t err_size);

/* slot.c: publishes what the record says.  Somebody may still use the view before. */
void moat_slot_publish_view(struct moat_engine *, struct moat_slot *);

/* slot.c: a port of this path, without a slot; NULL with errno.  And what binds it to one. */
struct moat_port *moat_port_create(struct moat_engine *, const char *path);
void moat_port_bind(struct moat_slot *, struct moat_port *);

#endif /* datapath/slot_private.h */
