/* SPDX-License-Identifier: Apache-2.0 */

/* An engine that says what it is told.  FAKE_ENGINE=old: of another interface; broken:
 * cannot start.  FAKE_REPLACE=FILE: when it serves, it has itself replaced by that file, and writes
 * a byte to descriptor FAKE_DONE_FD when that has happened, or not.  The engine that comes after is
 * what FAKE_NEXT says: old, broken, reluctant (it takes over at the third try), stubborn (never).
 */

#include "datapath/loader/engine_abi.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct moat_switch vhost;
static const char *name = "engine";
static const char *how;
static unsigned tries;

static uint16_t dequeue(int vid, uint16_t queue, struct rte_mempool *pool, struct rte_mbuf **pkts,
                        uint16_t n)
{
    printf("%s dequeue %d %u %u\n", name, vid, queue, n);
    return vhost.dequeue(vid, queue, pool, pkts, n);
}
static uint16_t enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    printf("%s enqueue %d %u %u\n", name, vid, queue, n);
    return vhost.enqueue(vid, queue, pkts, n);
}
static int port_register(const char *path)
{
    printf("%s port %s\n", name, path);
    return strcmp(path, "/refused") ? 0 : -ENOMEM;
}
static void connected(int vid)
{
    printf("%s connected %d\n", name, vid);
}
static void started(int vid)
{
    printf("%s started %d\n", name, vid);
}
static void logging(int vid, int on)
{
    printf("%s logging %d %d\n", name, vid, on);
}
static void stopped(int vid)
{
    printf("%s stopped %d\n", name, vid);
}
static void disconnected(int vid)
{
    printf("%s disconnected %d\n", name, vid);
}

static int prepare(char *err, size_t err_size)
{
    if (how && !strcmp(how, "stubborn")) {
        snprintf(err, err_size, "it does not want to");
        return -EPERM;
    }
    return 0;
}

static int take_over(char *err, size_t err_size)
{
    if (how && !strcmp(how, "reluctant") && tries++ < 2) {
        snprintf(err, err_size, "not now");
        return -EAGAIN;
    }
    printf("%s takes over\n", name);
    return 0;
}

/* As an engine's control thread. */
static void *control(void *aux)
{
    struct moat_exchanged took;
    char err[256] = "";
    int rc = vhost.replace_begin(getenv("FAKE_REPLACE"), err, sizeof err);

    (void)aux;
    while (!rc && (rc = vhost.replace_end(&took, err, sizeof err)) == -EAGAIN) {
        rc = 0;
        usleep(1000);
    }
    if (rc)
        printf("not replaced: %s\n", err);
    else
        printf("replaced by version %s at try %u\n", took.version, took.tries);
    fflush(stdout);
    if (write(atoi(getenv("FAKE_DONE_FD")), "x", 1) != 1)
        abort();
    return NULL;
}

static void serve(const struct moat_exchanged *took)
{
    static pthread_t thread;

    if (took)
        printf("%s serves\n", name);
    else if (getenv("FAKE_REPLACE") && pthread_create(&thread, NULL, control, NULL))
        abort();
}

static void destroy(void)
{
    printf("%s destroyed\n", name);
    fflush(stdout);
    if (strcmp(name, "engine") == 0 && write(atoi(getenv("FAKE_DONE_FD")), "x", 1) != 1)
        abort();
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
                                         .disconnected = disconnected,
                                         .handover = "what it is",
                                         .prepare = prepare,
                                         .take_over = take_over,
                                         .serve = serve,
                                         .destroy = destroy};

    how = getenv(sw->before ? "FAKE_NEXT" : "FAKE_ENGINE");
    if (sw->before && strcmp(sw->before, "what it is"))
        abort();
    if (sw->before) {
        name = "next";
        ops.version = "next";
    }
    if (how && !strcmp(how, "broken")) {
        snprintf(err, err_size, "the mapping is damaged");
        return NULL;
    }
    if (how && !strcmp(how, "old"))
        ops.abi++;
    vhost = *sw;
    return &ops;
}
