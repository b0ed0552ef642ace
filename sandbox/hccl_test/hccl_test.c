/* The collective tests of the sandbox: one program, whose name says which collective it runs.
 *
 * Each MPI rank stands for one device: rank modulo -p. Before anything is measured, the ranks join a ring over the
 * devices' own addresses (/etc/hccn.conf) and port 16666, so that a link that is down, an address that is missing, TLS
 * that differs or a process that was left over shows as it does on hardware. Then real bytes go between the ranks over
 * MPI, and every result is checked. Output, options and error codes are those of CANN's hccl_test.
 *
 * Under a name such as all_reduce_perf it is a program of nccl-tests instead: a rank stands for a GPU, its number is that
 * on its node, there are no addresses of devices, and options and output are those of nccl-tests.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <mpi.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_PORT 16666
#define CONNECT_TIMEOUT_S 120
enum { RET_INTERNAL = 4, RET_BOUND = 7, RET_TIMEOUT = 9, RET_LISTEN = 19 };
enum collective { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST, REDUCE, SCATTER, SEND_RECEIVE, COLLECTIVES };
static const char *const NAMES[COLLECTIVES] = {"all_reduce_test", "all_gather_test", "reduce_scatter_test",
                                               "alltoall_test",   "broadcast_test",  "reduce_test",
                                               "scatter_test",    "sendrecv_test"};
enum operation { SUM, PROD, MAX, MIN, OPERATIONS };
static const char *const OPERATION_NAMES[OPERATIONS] = {"sum", "prod", "max", "min"};
enum type { INT8, INT16, INT32, INT64, FP16, FP32, BFP16, TYPES };
static const char *const TYPE_NAMES[TYPES] = {"int8", "int16", "int32", "int64", "fp16", "fp32", "bfp16"};
static const size_t TYPE_SIZES[TYPES] = {1, 2, 4, 8, 2, 4, 2};
/* Ranks beyond which a result no longer fits its type: with 2 as each rank's input, with rank + 1, and as a product. */
static const double MOST_SUM[TYPES] = {63, 16383, 1e9, 1e18, 511, 1e6, 63};
static const double MOST_SCATTERED[TYPES] = {11, 181, 46340, 1e9, 31, 2896, 11};
static const double MOST_PROD[TYPES] = {6, 14, 30, 62, 15, 127, 127};

static int rank, ranks, device, npus = 8;
static enum collective collective;
static enum operation operation = SUM;
static enum type type = FP32;
static MPI_Op mpi_operation;
static int root;
static int delay_us, hangs;
static int nccl; /* a program of nccl-tests */
static char host[64] = "localhost";

/* -- errors ---------------------------------------------------------------------------------------------------------*/

static void fail(int line, int code, const char *step) {
  printf("hccl interface return err ./common/src/hccl_test_common.cc:%d, retcode: %d \n", line, code);
  printf("This is an error in %s.\n", step);
  fflush(stdout);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

static void usage(const char *why) {
  if (rank == 0 && nccl)
    printf("%s\nUSAGE: %.*s_perf \n", why, (int)strlen(NAMES[collective]) - 5, NAMES[collective]);
  else if (rank == 0) {
    printf("%s\n", why);
    printf("Usage: %s [-b,--minbytes <n>] [-e,--maxbytes <n>] [-i,--stepbytes <n>] [-f,--stepfactor <n>]\n"
           "  [-n,--iters <n>] [-w,--warmup_iters <n>] [-o,--op <sum|prod|max|min>] [-r,--root <rank>]\n"
           "  [-d,--datatype <int8|int16|int32|int64|fp16|fp32|bfp16>] [-c,--check <0|1>] [-p,--npus <n>]\n",
           NAMES[collective]);
  }
  MPI_Finalize();
  exit(1);
}

/* -- half precision -------------------------------------------------------------------------------------------------*/

static double half_value(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
  if (exponent == 31)
    value = INFINITY;
  return bits & 0x8000 ? -value : value;
}

static uint16_t half_bits(double value) {
  int exponent;
  uint16_t sign = value < 0 ? 0x8000 : 0;
  double fraction = frexp(fabs(value), &exponent);
  if (value == 0)
    return sign;
  if (exponent > 16)
    return sign | 31 << 10;
  /* Rounded to eleven bits; the carry of a full fraction raises the exponent by itself. */
  return sign | (uint16_t)(((exponent + 13) << 10) + (int)lrint(ldexp(fraction, 11)));
}

static double brain_value(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static uint16_t brain_bits(double wanted) {
  float value = (float)wanted;
  uint32_t wide;
  memcpy(&wide, &value, sizeof wide);
  return (uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

static double combined(double one, double other) {
  switch (operation) {
  case SUM:
    return one + other;
  case PROD:
    return one * other;
  case MAX:
    return one > other ? one : other;
  default:
    return one < other ? one : other;
  }
}

static void combine_halves(void *in, void *inout, int *count, MPI_Datatype *unused) {
  uint16_t *from = in, *to = inout;
  (void)unused;
  for (int index = 0; index < *count; index++)
    to[index] = type == FP16 ? half_bits(combined(half_value(from[index]), half_value(to[index])))
                             : brain_bits(combined(brain_value(from[index]), brain_value(to[index])));
}

static MPI_Datatype mpi_type(void) {
  static MPI_Datatype types[TYPES];
  types[INT8] = MPI_INT8_T;
  types[INT16] = MPI_INT16_T;
  types[INT32] = MPI_INT32_T;
  types[INT64] = MPI_INT64_T;
  types[FP16] = types[BFP16] = MPI_UINT16_T;
  types[FP32] = MPI_FLOAT;
  return types[type];
}

static void store(void *buffer, size_t index, double value) {
  switch (type) {
  case INT8:
    ((int8_t *)buffer)[index] = (int8_t)value;
    break;
  case INT16:
    ((int16_t *)buffer)[index] = (int16_t)value;
    break;
  case INT32:
    ((int32_t *)buffer)[index] = (int32_t)value;
    break;
  case INT64:
    ((int64_t *)buffer)[index] = (int64_t)value;
    break;
  case FP32:
    ((float *)buffer)[index] = (float)value;
    break;
  case FP16:
    ((uint16_t *)buffer)[index] = half_bits(value);
    break;
  default:
    ((uint16_t *)buffer)[index] = brain_bits(value);
  }
}

static double load(const void *buffer, size_t index) {
  switch (type) {
  case INT8:
    return ((const int8_t *)buffer)[index];
  case INT16:
    return ((const int16_t *)buffer)[index];
  case INT32:
    return ((const int32_t *)buffer)[index];
  case INT64:
    return (double)((const int64_t *)buffer)[index];
  case FP32:
    return ((const float *)buffer)[index];
  case FP16:
    return half_value(((const uint16_t *)buffer)[index]);
  default:
    return brain_value(((const uint16_t *)buffer)[index]);
  }
}

/* -- devices --------------------------------------------------------------------------------------------------------*/

static char *read_file(const char *path) {
  FILE *file = fopen(path, "r");
  char *text = NULL;
  size_t size = 0;
  if (!file)
    return NULL;
  if (getdelim(&text, &size, '\0', file) < 0) {
    free(text);
    text = NULL;
  }
  fclose(file);
  return text;
}

static const char *state_file(void) {
  const char *path = getenv("ASCENT_SANDBOX_STATE");
  return path ? path : "/usr/local/dcmi/state.json";
}

/* How many devices the node has, and whether TLS is switched on at ours. */
static int read_devices(int *tls) {
  char *text = read_file(state_file()), *place = text, wanted[32];
  int count = 0;
  *tls = 0;
  if (!text || strstr(text, "\"driver\": null")) {
    free(text);
    return 0;
  }
  snprintf(wanted, sizeof wanted, "\"logic_id\": %d,", device);
  while ((place = strstr(place, "\"logic_id\":"))) {
    char *end = strstr(place + 1, "\"logic_id\":");
    char *found = strstr(place, "\"enabled\": ");
    if (!strncmp(place, wanted, strlen(wanted)) && found && (!end || found < end))
      *tls = !strncmp(found + 11, "true", 4);
    count++;
    place++;
  }
  free(text);
  return count;
}

/* What is wrong on this node: operators that take longer, or that never end (on their own already, or with others). */
static void read_faults(void) {
  char *text = read_file(state_file()), *found;
  if (text && (found = strstr(text, "\"collective_delay_us\": ")))
    delay_us = atoi(found + 23);
  if (text && (found = strstr(text, "\"collective_hang\": \"")))
    hangs = !strncmp(found + 20, "alone", 5) || (ranks > npus && !strncmp(found + 20, "across", 6));
  free(text);
}

/* Our device's own address; 0 where none is configured. The last of equal keys wins. */
static in_addr_t device_address(void) {
  const char *path = getenv("ASCENT_SANDBOX_HCCN_CONF");
  FILE *file = fopen(path ? path : "/etc/hccn.conf", "r");
  char line[256], format[32], value[64];
  struct in_addr found = {0}, address;
  snprintf(format, sizeof format, " address_%d = %%63s", device);
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, format, value) == 1 && inet_aton(value, &address))
      found = address;
  if (file)
    fclose(file);
  return found.s_addr;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Reaches the next rank's device from ours and lets the previous one in; a return code, 0 for success. */
static int join_ring(in_addr_t own, in_addr_t next, int tls, double until, int listener) {
  struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = own};
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(DEVICE_PORT), .sin_addr.s_addr = next};
  int out = -1, in = -1, connected = 0, result = RET_TIMEOUT;
  char mine = (char)tls, theirs = -1;
  while ((!connected || in < 0) && seconds() < until) {
    if (!connected) {
      if (out < 0) {
        out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (bind(out, (struct sockaddr *)&from, sizeof from))
          goto done;
      }
      if (!connect(out, (struct sockaddr *)&to, sizeof to) || errno == EISCONN)
        connected = 1;
      else if (errno != EINPROGRESS && errno != EALREADY) {
        close(out);
        out = -1;
      }
    }
    if (in < 0)
      in = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (!connected || in < 0)
      poll(NULL, 0, 20);
  }
  if (!connected || in < 0)
    goto done;
  /* A peer that is hung lets us in and then says nothing. */
  struct pollfd waiting = {.fd = in, .events = POLLIN};
  double left = until - seconds();
  if (write(out, &mine, 1) == 1 && poll(&waiting, 1, left > 0 ? (int)(left * 1000) : 0) == 1 && read(in, &theirs, 1) == 1)
    result = theirs == mine ? 0 : RET_TIMEOUT;
done:
  if (out >= 0)
    close(out);
  if (in >= 0)
    close(in);
  return result;
}

static void init_communicator(void) {
  int tls, on = 1, result = 0, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const char *limit = getenv("HCCL_CONNECT_TIMEOUT");
  double until = seconds() + (limit && atof(limit) > 0 ? atof(limit) : CONNECT_TIMEOUT_S);
  in_addr_t own = device_address(), *all = malloc(sizeof *all * (size_t)ranks);
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(DEVICE_PORT), .sin_addr.s_addr = own};
  if (read_devices(&tls) <= device) {
    printf("Error: The number of device is %d.\n", read_devices(&tls));
    fflush(stdout);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8))
    result = errno == EADDRINUSE ? RET_BOUND : RET_LISTEN;
  if (!own)
    result = RET_LISTEN;
  if (result)
    fail(538, result, "init_hcclComm");
  MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, MPI_COMM_WORLD);
  if (ranks > 1 && (result = join_ring(own, all[(rank + 1) % ranks], tls, until, listener)))
    fail(538, result, "init_hcclComm");
  /* Held until the end, as the device's port is: the next test on this device finds it bound. */
  free(all);
}

/* nccl-tests: which GPU each rank has. */
static void show_devices(long long smallest, long long largest, long long factor, int iterations, int warmups, int checking) {
  int tls, count = read_devices(&tls);
  char line[160], *all = rank ? NULL : malloc(sizeof line * (size_t)ranks);
  if (count <= device) {
    printf("%s: Test CUDA failure common.cu:1047 '%s'\n .. %s pid %d: Test failure common.cu:1001\n", host,
           count ? "invalid device ordinal" : "no CUDA-capable device is detected", host, (int)getpid());
    fflush(stdout);
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  snprintf(line, sizeof line, "#  Rank %2d Group  0 Pid %6d on %10s device %2d [0000:%02x:00] NVIDIA H200", rank, (int)getpid(),
           host, device, 0x1b + device);
  MPI_Gather(line, sizeof line, MPI_CHAR, all, sizeof line, MPI_CHAR, 0, MPI_COMM_WORLD);
  if (rank)
    return;
  printf("# nThread 1 nGpus 1 minBytes %lld maxBytes %lld step: %lld(factor) warmup iters: %d iters: %d agg iters: 1 "
         "validate: %d graph: 0\n#\n# Using devices\n",
         smallest, largest, factor, warmups, iterations, checking);
  for (int index = 0; index < ranks; index++)
    printf("%s\n", all + (size_t)index * sizeof line);
  free(all);
}

/* -- collectives ----------------------------------------------------------------------------------------------------*/

/* Elements of `count` that one rank sends; `count` is what the larger side holds. */
static size_t share(size_t count) { return count / (size_t)ranks; }

static void run(const void *send, void *receive, size_t count) {
  MPI_Datatype kind = mpi_type();
  int whole = (int)count, part = (int)share(count);
  if (delay_us)
    poll(NULL, 0, delay_us / 1000);
  /* The process lives on, holds its device and answers nobody, as one does whose device hangs in an operator. */
  while (hangs)
    poll(NULL, 0, 1000);
  switch (collective) {
  case ALL_REDUCE:
    MPI_Allreduce(send, receive, whole, kind, mpi_operation, MPI_COMM_WORLD);
    break;
  case ALL_GATHER:
    MPI_Allgather(send, part, kind, receive, part, kind, MPI_COMM_WORLD);
    break;
  case REDUCE_SCATTER:
    MPI_Reduce_scatter_block(send, receive, part, kind, mpi_operation, MPI_COMM_WORLD);
    break;
  case ALL_TO_ALL:
    MPI_Alltoall(send, part, kind, receive, part, kind, MPI_COMM_WORLD);
    break;
  case BROADCAST:
    if (rank == root)
      memcpy(receive, send, count * TYPE_SIZES[type]);
    MPI_Bcast(receive, whole, kind, root, MPI_COMM_WORLD);
    break;
  case REDUCE:
    MPI_Reduce(send, receive, whole, kind, mpi_operation, root, MPI_COMM_WORLD);
    break;
  case SCATTER:
    MPI_Scatter(send, part, kind, receive, part, kind, root, MPI_COMM_WORLD);
    break;
  default:
    MPI_Sendrecv(send, whole, kind, (rank + 1) % ranks, 0, receive, whole, kind, (rank + ranks - 1) % ranks, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
}

static int reduces(void) { return collective == ALL_REDUCE || collective == REDUCE || collective == REDUCE_SCATTER; }

/* What a rank puts in for the part of another rank: small whole numbers, exact in every type. */
static double input(int from, int to) {
  if (reduces())
    return collective == REDUCE_SCATTER && operation != PROD ? to + 1 : 2;
  if (collective == ALL_TO_ALL || collective == SCATTER)
    return (from * 7 + to) % 100 + 1;
  return from % 100 + 1;
}

static double expected(int from, int to) {
  double one = input(from, to);
  if (!reduces() || operation == MAX || operation == MIN)
    return one;
  return operation == SUM ? one * ranks : pow(one, ranks);
}

static void fill(void *send, size_t count) {
  size_t part = share(count), length = collective == ALL_GATHER ? part : count;
  for (size_t index = 0; index < length; index++)
    store(send, index, input(rank, part ? (int)(index / part) : 0));
}

static long check(const void *receive, size_t count) {
  size_t part = share(count), length = collective == REDUCE_SCATTER || collective == SCATTER ? part : count;
  long wrong = 0;
  if (collective == REDUCE && rank != root)
    return 0;
  for (size_t index = 0; index < length; index++) {
    int from = collective == BROADCAST || collective == SCATTER ? root
               : collective == SEND_RECEIVE                    ? (rank + ranks - 1) % ranks
                                                               : (int)(index / part);
    double exp = expected(from, rank), act = load(receive, index);
    if (exp != act && wrong++ < 10)
      printf("check buf[%zu] error, exp:%g, act:%g\n", index, exp, act);
  }
  if (wrong)
    printf("total err is %ld\n", wrong);
  return wrong;
}

static int checkable(void) {
  if (!reduces() || operation == MAX || operation == MIN)
    return collective != REDUCE_SCATTER || ranks <= 127 || type != INT8;
  if (operation == PROD)
    return ranks <= MOST_PROD[type];
  return ranks <= (collective == REDUCE_SCATTER ? MOST_SCATTERED : MOST_SUM)[type];
}

/* What nccl-tests calls bus bandwidth: algorithm bandwidth by what a ring has to carry. */
static double bus_factor(void) {
  double others = (double)(ranks - 1) / ranks;
  return collective == ALL_REDUCE ? 2 * others : collective == SEND_RECEIVE || collective == BROADCAST ? 1 : others;
}

static void show_perf(size_t size, double average, long wrong, int verified, int header) {
  double algorithm = (double)size / average / 1e3;
  char count[16] = "N/A";
  if (header)
    printf("#\n#                                                              out-of-place                       in-place          \n"
           "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong\n"
           "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)       \n");
  if (verified)
    snprintf(count, sizeof count, "%ld", wrong);
  printf("%12zu  %12zu  %8s  %6s  %6d", size, size / TYPE_SIZES[type], "float", reduces() ? "sum" : "none", -1);
  /* One way to hand over buffers here, told in both columns. */
  for (int column = 0; column < 2; column++)
    printf("  %7.2f  %6.2f  %6.2f  %5s", average, algorithm, algorithm * bus_factor(), count);
  printf("\n");
}

static void measure(size_t bytes, int iterations, int warmups, int wanted_check, int *header, int *failed) {
  size_t unit = TYPE_SIZES[type] * (size_t)ranks, size = (bytes + unit - 1) / unit * unit, count = size / TYPE_SIZES[type];
  void *send = malloc(size), *receive = calloc(1, size);
  int verify = wanted_check && checkable();
  if (!send || !receive)
    fail(601, RET_INTERNAL, "malloc");
  fill(send, count);
  for (int index = 0; index < warmups; index++)
    run(send, receive, count);
  MPI_Barrier(MPI_COMM_WORLD);
  double started = seconds();
  for (int index = 0; index < iterations; index++)
    run(send, receive, count);
  double own = (seconds() - started) / iterations * 1e6, average;
  MPI_Allreduce(&own, &average, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  long wrong = verify ? check(receive, count) : 0;
  double bandwidth = (double)size / average / 1e3;
  if (nccl) {
    long sum = 0;
    MPI_Allreduce(&wrong, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0)
      show_perf(size, average, sum, verify, *header);
    *header = 0;
    *failed |= sum != 0;
    fflush(stdout);
    free(send);
    free(receive);
    return;
  }
  if (rank == 0 && *header) {
    if (wanted_check && !verify)
      printf("Warning: the result may overflow with %d ranks. No verification is performed.\n", ranks);
    printf("%-15s | %-12s | %-18s | %s\n", "data_size(Bytes):", "aveg_time(us):", "alg_bandwidth(GB/s):", "check_result:");
  }
  *header = 0;
  if (rank == 0)
    printf("%-17zu | %-14.2f | %-20.5f | %s\n", size, average, bandwidth, !verify ? "NULL" : wrong ? "failed" : "success");
  else if (wrong)
    printf("local rank_id %d, check result failed, %-17zu | %-14.2f | %-20.5f | failed\n", rank, size, average, bandwidth);
  fflush(stdout);
  *failed |= wrong != 0;
  free(send);
  free(receive);
}

/* -- command line ---------------------------------------------------------------------------------------------------*/

static long long bytes_of(const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (*end == 'K' || *end == 'k')
    value *= 1024, end++;
  else if (*end == 'M' || *end == 'm')
    value *= 1024 * 1024, end++;
  else if (*end == 'G' || *end == 'g')
    value *= 1024.0 * 1024 * 1024, end++;
  return end == text || *end || value < 0 ? -1 : (long long)value;
}

static int choice(const char *text, const char *const *names, int count) {
  for (int index = 0; index < count; index++)
    if (!strcmp(text, names[index]))
      return index;
  usage("invalid option value.");
  return 0;
}

int main(int argc, char **argv) {
  static const char *const LONG[][2] = {{"--minbytes", "b"}, {"--maxbytes", "e"},     {"--stepbytes", "i"}, {"--stepfactor", "f"},
                                        {"--iters", "n"},    {"--warmup_iters", "w"}, {"--op", "o"},        {"--root", "r"},
                                        {"--datatype", "d"}, {"--check", "c"},        {"--npus", "p"},      {"--zero_copy", "z"}};
  long long smallest = 64LL << 20, largest = 64LL << 20, step = 0, factor = 1;
  int iterations = 20, warmups = 5, checking = 1, header = 1, failed = 0, anywhere;
  const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];

  /* Idle ranks leave the processor to others: there are more ranks than processors here. */
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  char plain[64];
  size_t length = strlen(name);
  nccl = length > 5 && length < sizeof plain && !strcmp(name + length - 5, "_perf");
  if (nccl) {
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK"), *together = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    snprintf(plain, sizeof plain, "%.*s_test", (int)length - 5, name);
    name = plain;
    device = local ? atoi(local) : rank;
    npus = together ? atoi(together) : ranks;
    gethostname(host, sizeof host - 1);
  }
  collective = (enum collective)choice(name, NAMES, COLLECTIVES);
  for (int index = 1; index < argc; index++) {
    char option = argv[index][0] == '-' && argv[index][1] && !argv[index][2] ? argv[index][1] : 0;
    for (size_t known = 0; !option && known < sizeof LONG / sizeof *LONG; known++)
      if (!strcmp(argv[index], LONG[known][0]))
        option = *LONG[known][1];
    if (!option || !strchr(nccl ? "beifnworedcg" : "beifnworedcpz", option) || index + 1 >= argc)
      usage("invalid option.");
    const char *value = argv[++index];
    long long number = bytes_of(value);
    if (!strchr("od", option) && number < 0)
      usage("invalid option value.");
    switch (option) {
    case 'b':
      smallest = number;
      break;
    case 'e':
      largest = number;
      break;
    case 'i':
      step = number;
      break;
    case 'f':
      factor = number;
      break;
    case 'n':
      iterations = (int)number;
      break;
    case 'w':
      warmups = (int)number;
      break;
    case 'o':
      operation = (enum operation)choice(value, OPERATION_NAMES, OPERATIONS);
      break;
    case 'd':
      type = (enum type)choice(value, TYPE_NAMES, TYPES);
      break;
    case 'r':
      root = (int)number;
      break;
    case 'c':
      checking = number != 0;
      break;
    case 'p':
      npus = (int)number;
      break;
    default:
      break; /* -g: one GPU a rank; -z: there is one way to hand over buffers here */
    }
  }
  if (smallest < 1 || largest < smallest || iterations < 1 || npus < 1 || root >= ranks || largest > INT32_MAX)
    usage("invalid option value.");
  if (!nccl)
    device = rank % npus;
  static MPI_Op halves;
  MPI_Op_create(combine_halves, 1, &halves);
  mpi_operation = operation == SUM ? MPI_SUM : operation == PROD ? MPI_PROD : operation == MAX ? MPI_MAX : MPI_MIN;
  if (type == FP16 || type == BFP16)
    mpi_operation = halves;
  if (nccl)
    show_devices(smallest, largest, factor, iterations, warmups, checking);
  else if (rank == 0)
    printf("the minbytes is %lld, maxbytes is %lld, iters is %d, warmup_iters is %d\n", smallest, largest, iterations, warmups);
  fflush(stdout);
  if (!nccl)
    init_communicator();
  read_faults();
  for (long long size = smallest; size <= largest;) {
    measure((size_t)size, iterations, warmups, checking, &header, &failed);
    long long next = step ? size + step : size * (factor > 1 ? factor : largest / size + 1);
    size = next;
  }
  MPI_Allreduce(&failed, &anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (nccl && rank == 0)
    printf("# Out of bounds values : %d %s\n# Avg bus bandwidth    : 1.0 \n#\n", anywhere, anywhere ? "FAILED" : "OK");
  MPI_Op_free(&halves);
  MPI_Finalize();
  return anywhere;
}
