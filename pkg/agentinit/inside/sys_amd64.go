package inside

// System call numbers that package syscall lacks (arch/x86/entry/syscalls/syscall_64.tbl).
const (
	sysSeccomp         = 317
	sysCloseRange      = 436
	sysBPF             = 321
	sysIOUringSetup    = 425
	sysUserfaultfd     = 323
	sysSetns           = 308
	sysClone3          = 435
	sysOpenTree        = 428
	sysFsopen          = 430
	sysMoveMount       = 429
	sysOpenByHandleAt  = 304
	sysProcessVMWritev = 311
	sysProcessVMReadv  = 310
	sysPidfdGetfd      = 438
	sysPidfdOpen       = 434
	sysKcmp            = 312
	sysFinitModule     = 313
	sysKexecFileLoad   = 320
	sysFanotifyInit    = 300
	sysPerfEventOpen   = 298
	sysKeyctl          = 250
	sysAddKey          = 248
	sysRenameat2       = 316
	sysFchmodat2       = 452
	sysFstatat         = 262
	sysPpoll           = 271
	sysGetrandom       = 318
)
