/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_EVENT_H
#define MOAT_DP_EVENT_H 1

/* Ring of events from all threads to the control thread.  Bounded; posting never
 * waits, takes no lock and makes no system call unless `urgent`; when it is full the
 * event is lost and counted.  (D. Vyukov's bounded queue: each cell carries the
 * ticket of who may use it next.) */

#include <stdbool.h>
#include <stdint.h>

#include "moat/ctl.h"

struct moat_event_cell;

struct moat_events {
    struct moat_event_cell *cells;
    uint32_t mask;
    int wake_fd; /* eventfd: readable after an urgent event */
    uint64_t lost;
    uint64_t head __attribute__((aligned(64))); /* next ticket to post */
    uint64_t tail __attribute__((aligned(64))); /* next to take; control thread only */
};

int moat_events_init(struct moat_events *, uint32_t size); /* a power of two */
void moat_events_destroy(struct moat_events *);

/* Any thread.  Copies *ev and sets seq and time_us.  False if it was lost.
 * Urgent: wakes the control thread (a system call: never on the packet path). */
bool moat_event_post(struct moat_events *, const struct moat_event *ev, bool urgent);

/* Control thread.  False if there is none. */
bool moat_event_take(struct moat_events *, struct moat_event *out);

#endif /* datapath/event.h */
