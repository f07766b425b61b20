/* SPDX-License-Identifier: Apache-2.0 */

/*   IDLE --begin--> LOADING --> READY --end--> IDLE (replaced, or called off)
 *                      |                         ^
 *                      +------> FAILED --end-----+
 *
 * LOADING belongs to a thread of its own, all else to the serving engine's control thread.  The
 * engine that was replaced is buried by another thread; the next exchange waits for that one.
 * Closing the gate may take several tries: a packet thread was not running, a port is being
 * stopped, a vNIC is being moved.  Each costs packets no more than GATE_PATIENCE_US. */

#include "exchange.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "engine_file.h"
#include "gate.h"
#include "tell.h"

#define GATE_PATIENCE_US 300
#define TRY_FOR_MS 10000 /* then it is called off */
/* A thread of the switch that is just ending may be in the old engine's clean-up of threads, which
 * the C library calls and nobody can ask about. */
#define GRACE_US 200000

struct engine {
    struct engine_file file;
    const struct moat_engine_ops *ops;
    pthread_t control; /* of one that has ended */
};

enum state { IDLE, LOADING, READY, FAILED };

pthread_rwlock_t exchange_ports = PTHREAD_RWLOCK_INITIALIZER;

static struct moat_switch vhost;
static char default_file[PATH_MAX];
static struct engine serving;
static pthread_t burying; /* if is_burying */
static bool is_burying;

/* The one exchange that may be under way. */
static struct {
    enum state state; /* atomic */
    struct engine next;
    char file[PATH_MAX];
    char why[512];
    int rc;
    pthread_t loading;
    bool joined;
    uint64_t began_ms, ready_ms;
    uint32_t tries;
} now;

static uint64_t monotonic_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t monotonic_ms(void)
{
    return monotonic_us() / 1000;
}

/* A thread that takes no signals: those are the switch's business. */
static int spawn(pthread_t *thread, void *(*run)(void *), void *aux)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(thread, NULL, run, aux);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

/* Calls the entry of an engine that has been loaded. */
static int enter(struct engine *e, const char *file, const void *before, char *err, size_t err_size)
{
    struct moat_switch sw = vhost;

    sw.file = file;
    sw.before = before;
    e->ops = e->file.entry(&sw, err, err_size);
    if (!e->ops)
        return -EINVAL;
    if (e->ops->abi == MOAT_ENGINE_ABI && e->ops->size >= sizeof *e->ops)
        return 0;
    snprintf(err, err_size, "it has interface %u, this loader %u", e->ops->abi, MOAT_ENGINE_ABI);
    return -EPROTONOSUPPORT;
}

/* --- the loading thread --- */

static void *load(void *aux)
{
    int rc;

    (void)aux;
    if (is_burying)
        pthread_join(burying, NULL);
    is_burying = false;
    rc = engine_file_open_copy(&now.next.file, now.file, now.why, sizeof now.why);
    if (!rc) {
        rc = enter(&now.next, now.file, serving.ops->handover, now.why, sizeof now.why);
        if (rc)
            engine_file_close(&now.next.file);
    }
    now.rc = rc;
    now.ready_ms = monotonic_ms();
    __atomic_store_n(&now.state, rc ? FAILED : READY, __ATOMIC_RELEASE);
    return NULL;
}

static int begin(const char *file, char *err, size_t err_size)
{
    int rc;

    if (__atomic_load_n(&now.state, __ATOMIC_ACQUIRE) != IDLE) {
        snprintf(err, err_size, "the engine is being replaced already");
        return -EBUSY;
    }
    snprintf(now.file, sizeof now.file, "%s", *file ? file : default_file);
    snprintf(now.why, sizeof now.why, "no reason given");
    now.began_ms = monotonic_ms();
    now.tries = 0;
    now.joined = false;
    now.state = LOADING;
    rc = spawn(&now.loading, load, NULL);
    if (rc) {
        now.state = IDLE;
        snprintf(err, err_size, "no thread to load it: %s", strerror(rc));
        return -rc;
    }
    pthread_setname_np(now.loading, "moat-load");
    tell(LOG_NOTICE, "replacing engine %s by %s", serving.ops->version, now.file);
    return 0;
}

/* --- the exchange --- */

/* The one that was replaced, when its last thread has ended. */
static void *bury(void *old_)
{
    struct engine *old = old_;

    pthread_join(old->control, NULL);
    usleep(GRACE_US);
    old->ops->destroy();
    engine_file_close(&old->file);
    free(old);
    return NULL;
}

/* While the gate is closed all packets wait for this thread, and nothing else of this processor's
 * may come before it.  It takes microseconds.  Without the privilege it goes on as it is. */
static void hurry(bool on, int *policy, struct sched_param *param)
{
    static const struct sched_param first = {.sched_priority = 1};

    if (on && pthread_getschedparam(pthread_self(), policy, param))
        *policy = -1;
    if (*policy >= 0)
        pthread_setschedparam(pthread_self(), on ? SCHED_FIFO : *policy, on ? &first : param);
}

/* 0, -EAGAIN or why it cannot be. */
static int pass_through_gate(uint32_t *gate_us, char *err, size_t err_size)
{
    struct sched_param param;
    uint64_t closed;
    int rc, policy;

    if (pthread_rwlock_trywrlock(&exchange_ports)) {
        snprintf(err, err_size, "a port is being started or stopped, or its VM is being moved");
        return -EAGAIN;
    }
    hurry(true, &policy, &param);
    closed = monotonic_us();
    if (gate_close(GATE_PATIENCE_US)) {
        rc = now.next.ops->take_over(err, err_size);
        gate_open(rc ? serving.ops : now.next.ops);
        *gate_us = (uint32_t)(monotonic_us() - closed);
    } else {
        snprintf(err, err_size, "a packet thread did not leave its burst for %u us",
                 GATE_PATIENCE_US);
        rc = -EAGAIN;
    }
    hurry(false, &policy, &param);
    pthread_rwlock_unlock(&exchange_ports);
    return rc;
}

static void call_off(const char *why)
{
    now.next.ops->destroy();
    engine_file_close(&now.next.file);
    tell(LOG_ERR, "%s: not taken, engine %s stays: %s", now.file, serving.ops->version, why);
    now.state = IDLE;
}

static int replaced(struct moat_exchanged *out)
{
    struct engine *old = malloc(sizeof *old);

    if (old) {
        *old = serving;
        old->control = pthread_self();
    }
    serving = now.next;
    snprintf(out->version, sizeof out->version, "%s", serving.ops->version);
    tell(LOG_NOTICE, "engine %s serves, from %s; packets had to wait for %u us", out->version,
         now.file, out->gate_us);
    is_burying = old && !spawn(&burying, bury, old);
    if (is_burying) {
        pthread_setname_np(burying, "moat-bury");
    } else {
        tell(LOG_WARNING, "the old engine stays in memory");
        free(old);
    }
    now.state = IDLE;
    serving.ops->serve(out); /* from here on the next exchange may begin */
    return 0;
}

static int end(struct moat_exchanged *out, char *err, size_t err_size)
{
    enum state state = __atomic_load_n(&now.state, __ATOMIC_ACQUIRE);
    int rc;

    memset(out, 0, sizeof *out);
    if (state != READY && state != FAILED)
        return state == LOADING ? -EAGAIN : -EINVAL;
    if (!now.joined)
        pthread_join(now.loading, NULL);
    now.joined = true;
    if (state == FAILED) {
        rc = now.rc;
        snprintf(err, err_size, "%s", now.why);
        tell(LOG_ERR, "%s: not taken, engine %s stays: %s", now.file, serving.ops->version, err);
        now.state = IDLE;
        return rc;
    }
    now.tries++;
    out->tries = now.tries;
    out->prepare_ms = (uint32_t)(now.ready_ms - now.began_ms);
    rc = now.next.ops->prepare(err, err_size);
    if (!rc)
        rc = pass_through_gate(&out->gate_us, err, err_size);
    if (!rc)
        return replaced(out);
    if (rc == -EAGAIN && monotonic_ms() - now.ready_ms < TRY_FOR_MS)
        return -EAGAIN;
    call_off(err);
    return rc == -EAGAIN ? -EBUSY : rc;
}

const struct moat_engine_ops *exchange_start(const struct moat_switch *sw, const char *file,
                                             char *err, size_t err_size)
{
    vhost = *sw;
    vhost.abi = MOAT_ENGINE_ABI;
    vhost.size = sizeof vhost;
    vhost.replace_begin = begin;
    vhost.replace_end = end;
    snprintf(default_file, sizeof default_file, "%s", file);
    if (engine_file_open(&serving.file, file, err, err_size))
        return NULL;
    if (enter(&serving, file, NULL, err, err_size)) {
        engine_file_close(&serving.file);
        return NULL;
    }
    serving.ops->serve(NULL);
    return serving.ops;
}
