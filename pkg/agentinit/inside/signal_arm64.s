#include "textflag.h"

// func signalHandlerPC() uintptr
TEXT ·signalHandlerPC(SB),NOSPLIT,$0-8
	MOVD	$signalHandler<>(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// func signalRestorerPC() uintptr
// The kernel returns through its vdso on arm64.
TEXT ·signalRestorerPC(SB),NOSPLIT,$0-8
	MOVD	ZR, ret+0(FP)
	RET

// signalHandler(signo) is called by the kernel on the thread's signal stack:
// it writes the number, one byte, to signalPipe. The pipe does not block.
TEXT signalHandler<>(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	SUB	$16, RSP
	MOVD	R0, 8(RSP)
	MOVW	·signalPipe(SB), R0
	ADD	$8, RSP, R1
	MOVD	$1, R2
	MOVD	$64, R8 // SYS_write
	SVC
	ADD	$16, RSP
	RET
