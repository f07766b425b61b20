/* SPDX-License-Identifier: Apache-2.0 */

/* An engine that says what it is told.  FAKE_ENGINE=old: of another interface; broken:
 * cannot start. */

#include "datapath/loader/engine_abi.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct moat_switch vhost;

static uint16_t dequeue(int vid, uint16_t queue, struct rte_mempool *pool, struct rte_mbuf **pkts,
                        uint16_t n)
{
    printf("engine dequeue %d %u %u\n", vid, queue, n);
    return vhost.dequeue(vid, queue, pool, pkts, n);
}
static uint16_t enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    printf("engine enqueue %d %u %u\n", vid, queue, n);
    return vhost.enqueue(vid, queue, pkts, n);
}
static int port_register(const char *path)
{
    printf("engine port %s\n", path);
    return strcmp(path, "/refused") ? 0 : -ENOMEM;
}
static void connected(int vid)
{
    printf("engine connected %d\n", vid);
}
static void started(int vid)
{
    printf("engine started %d\n", vid);
}
static void logging(int vid, int on)
{
    printf("engine logging %d %d\n", vid, on);
}
static void stopped(int vid)
{
    printf("engine stopped %d\n", vid);
}
static void disconnected(int vid)
{
    printf("engine disconnected %d\n", vid);
}

moat_engine_entry_fn moat_engine_entry;

const struct moat_engine_ops *moat_engine_entry(const struct moat_switch *sw, char *err,
                                                size_t err_size)
{
    static struct moat_engine_ops ops = {.abi = MOAT_ENGINE_ABI,
                                         .size = sizeof ops,
                                         .version = "fake",
                                         .dequeue = dequeue,
                                         .enqueue = enqueue,
                                         .port_register = port_register,
                                         .connected = connected,
                                         .started = started,
                                         .logging = logging,
                                         .stopped = stopped,
                                         .disconnected = disconnected};
    const char *how = getenv("FAKE_ENGINE");

    if (how && !strcmp(how, "broken")) {
        snprintf(err, err_size, "the mapping is damaged");
        return NULL;
    }
    if (how && !strcmp(how, "old"))
        ops.abi++;
    vhost = *sw;
    return &ops;
}
